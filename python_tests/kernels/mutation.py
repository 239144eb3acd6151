"""A fault of a CUDA kernel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A change of one place in a source.

    Args:
        name: the fault
        file: the source, below csrc/kernels
        unit: the source to compile that includes the file, or is it
        context: text that occurs once in the file
        old: the part of the context to replace, which occurs once in it; an expression, or statements
        new: the replacement
        cases: texts in the names of the cases to run
    """

    name: str
    file: str
    unit: str
    context: str
    old: str
    new: str
    cases: str

    def apply(self, text: str, number: int) -> str:
        """Returns the text with both parts: the new one runs if simt::mutation is `number`."""
        assert text.count(self.context) == 1, f"{self.context!r} must occur once in {self.file}"
        assert self.context.count(self.old) == 1, f"{self.old!r} must occur once in {self.context!r}"
        condition = f"::recgrela::simt::mutation == {number}"
        if self.old.endswith(";"):
            both = f"if ({condition}) {{ {self.new} }} else {{ {self.old} }}"
        else:
            both = f"({condition} ? ({self.new}) : ({self.old}))"
        return text.replace(self.context, self.context.replace(self.old, both))


def dropped(name: str, file: str, unit: str, context: str, old: str, cases: str) -> Mutation:
    """A barrier that is missing."""
    return Mutation(name, file, unit, context, old, "", cases)
