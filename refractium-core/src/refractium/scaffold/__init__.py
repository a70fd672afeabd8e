"""New plugins: this package writes a complete distribution of a plugin from templates.

The folder ``templates`` contains the files of a new distribution: the files in ``common`` for every kind of
plugin, and the files in one more folder for each kind. The file ``use.md.in`` of a kind is a part of the
README.
"""

from __future__ import annotations

from refractium.scaffold.kinds import KINDS, Kind
from refractium.scaffold.names import problem_of_new_name
from refractium.scaffold.package import write_package

__all__ = ["KINDS", "Kind", "problem_of_new_name", "write_package"]
