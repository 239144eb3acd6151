"""Loads the authors' weights into our models."""

from recgrela.models.official.load import AuthorSettings, OfficialWeights, State, load_official
from recgrela.models.official.names import count_modules, given, joined

__all__ = ["AuthorSettings", "OfficialWeights", "State", "count_modules", "given", "joined", "load_official"]
