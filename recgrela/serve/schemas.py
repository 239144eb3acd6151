"""Bodies and answers of the service, with the limits of every field."""

from __future__ import annotations

import time
import unicodedata
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

MAX_ID = 256  # characters
MAX_EVENTS = 1000  # of a request
MAX_ITEMS = 10_000  # of a list in a request
MAX_K = 1000
MAX_AHEAD = 24 * 3600.0  # seconds that a time may be ahead of the server's clock
MIN_TIME = -62_135_596_800.0  # the year 1


def _text(value: Any) -> Any:
    """Whole numbers are ids, too."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def check_id(text: str) -> str:
    """Returns an id. Raises ValueError for control characters and invalid Unicode."""
    if not text.isprintable() and any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise ValueError("has control characters or invalid Unicode")
    return text


def check_time(value: float) -> float:
    """Returns a time. Raises ValueError if it is far ahead, as milliseconds are."""
    if value > time.time() + MAX_AHEAD:
        raise ValueError(
            "is over a day ahead of the server's clock; send seconds since 1970, not milliseconds"
        )
    return value


Id = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_ID),
    AfterValidator(check_id),
    BeforeValidator(_text, json_schema_input_type=str | int),
]
Time = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=MIN_TIME), AfterValidator(check_time)]
K = Annotated[int, Field(ge=1, le=MAX_K, description="Number of items.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class EventIn(_Body):
    """A user's interaction with an item."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"user": "196", "item": "242", "time": 881250949, "id": "order-17/1"}]
        },
    )

    user: Id = Field(description="Id of the user.")
    item: Id = Field(description="Id of the item; one that the model does not know is stored, too.")
    time: Time | None = Field(None, description="Seconds since 1970; by default the server's clock.")
    id: Id | None = Field(
        None,
        description="Key of the event within the user, so that it can be sent again without being doubled.",
    )


Events = Annotated[list[EventIn], Field(min_length=1, max_length=MAX_EVENTS)]
EventsIn = Annotated[
    Annotated[EventIn, Tag("event")] | Annotated[Events, Tag("events")],
    Discriminator(lambda value: "events" if isinstance(value, list) else "event"),
]


class RecommendIn(_Body):
    """A stored user, or a history of somebody who is not stored."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"items": ["242", "302"], "k": 5, "deny": ["51"]}]}
    )

    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_ITEMS)] | None = Field(
        None, description="The history as ids of items, oldest first; unknown ones are skipped."
    )
    user: Id | None = Field(None, description="Id of a stored user, instead of `items`.")
    k: K = 10
    exclude_seen: bool = Field(True, description="Exclude items of the history.")
    allow: Annotated[list[Id], Field(min_length=1, max_length=MAX_ITEMS)] | None = Field(
        None, description="The only items to recommend; unknown ids are ignored."
    )
    deny: Annotated[list[Id], Field(min_length=0, max_length=MAX_ITEMS)] = Field(
        [], description="Items not to recommend."
    )

    @model_validator(mode="after")
    def _one_source(self) -> RecommendIn:
        if (self.items is None) == (self.user is None):
            raise ValueError("give either items or user")
        return self


class HistoryIn(_Body):
    """A history of somebody who is not stored."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"items": ["242", "302"]}]})

    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_ITEMS)] = Field(
        description="Ids of items, oldest first; unknown ones are skipped."
    )


class ReceiptOut(BaseModel):
    """What became of an event."""

    stored: bool = Field(description="False if the user already has an event of this id.")
    known: bool = Field(description="Whether the model knows the item.")


class EventsOut(BaseModel):
    """The events are on the disk of the server."""

    receipts: list[ReceiptOut] = Field(description="In the order of the events.")


class ItemOut(BaseModel):
    """An item of the model."""

    item: str
    title: str | None
    retired: bool = Field(description="Whether the item is never recommended.")


class ItemsOut(BaseModel):
    """Items, best matches first."""

    items: list[ItemOut]


class ScoredOut(BaseModel):
    """A recommended item."""

    item: str
    title: str | None
    score: float


class RecommendOut(BaseModel):
    """Recommendations, best first; fewer than k if fewer may be recommended."""

    items: list[ScoredOut]
    length: int = Field(description="Number of items of the history that the model knows.")


class SimilarOut(BaseModel):
    """Items by the cosine of their vectors, most similar first."""

    items: list[ScoredOut]


class HistoryEvent(BaseModel):
    """An event of a user."""

    item: str
    title: str | None
    time: float
    known: bool = Field(description="Whether the model knows the item.")


class HistoryOut(BaseModel):
    """The last events of a user, oldest first."""

    events: list[HistoryEvent]


class LayerOut(BaseModel):
    """Norms of one layer, a number for each head."""

    name: str
    state: list[float] = Field(description="Norm of the head's state, in attention of its mean over items.")
    gate: list[float] | None = Field(description="Root mean square of the head's gate at the last item.")


class StatesOut(BaseModel):
    """Layers in order; none for a model whose state is the last items."""

    layers: list[LayerOut]


class HealthOut(BaseModel):
    """State of the server."""

    live: bool
    ready: bool
    checkpoint: str
    model: str = Field(description="Key of the model's states in the store.")
    items: int
    uptime: float = Field(description="Seconds.")


class ErrorOut(BaseModel):
    """An error."""

    error: str
