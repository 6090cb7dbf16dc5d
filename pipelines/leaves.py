"""Every parameter of params.yaml as a typed input of a pipeline and of its tasks, made from the one schema.

A text with placeholders, such as a JSON object of all parameters, would not do: Kubeflow puts values into it as they
are, so that a quotation mark breaks it, and turns the integers inside a dictionary into floats (kfp#11004). A value
that is an input by itself arrives as it was.
"""

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ganflow.errors import UserError
from ganflow.params import Params, descriptions, dump

_PLACEHOLDER = "{{$"
_TYPES = (bool, int, float, str)


@dataclass(frozen=True)
class Leaf:
    """One parameter: its dotted path, its value, and what it means."""

    path: str
    value: bool | int | float | str
    note: str

    @property
    def name(self) -> str:
        """Name of the input: Python allows no dot in it."""
        return self.path.replace(".", "_")

    @property
    def type(self) -> type:
        """Type of the input, which is that of the schema."""
        return type(self.value)


def leaves_of(params: Params) -> tuple[Leaf, ...]:
    """List the leaves of params.yaml for the family that it chooses, the family's own ones among them.

    Raises UserError for a text that Kubeflow cannot pass on.
    """
    notes = descriptions(params)
    leaves = []
    for section, content in dump(params).items():
        values = {f"{section}.{key}": value for key, value in content.items()} if isinstance(content, dict) else None
        for path, value in (values or {section: content}).items():
            if type(value) not in _TYPES:
                raise TypeError(f"{path}: {type(value).__name__} is no type of a pipeline's input")
            require_passable(path, value)
            leaves.append(Leaf(path, value, notes[path]))
    return tuple(leaves)


def require_passable(name: str, value: object) -> None:
    """Raise UserError for a text that Kubeflow would not pass on as it is."""
    if _PLACEHOLDER in str(value):
        raise UserError(f"{name}: holds {_PLACEHOLDER}, which Kubeflow takes for a placeholder of its own")


def of_sections(leaves: Iterable[Leaf], sections: Sequence[str]) -> tuple[Leaf, ...]:
    """Choose the leaves of some sections, and those that are named by their paths."""
    return tuple(leaf for leaf in leaves if {leaf.path, leaf.path.partition(".")[0]} & set(sections))


def with_leaves(function: Callable[..., Any], leaves: Sequence[Leaf]) -> Callable[..., Any]:
    """Put one typed argument for each leaf in the place of the function's argument `leaves`, a dictionary.

    Kubeflow ships the source of a function, so that the new one must have a source too: the standard library's
    linecache keeps it, where `inspect` looks for it.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    (definition,) = tree.body
    if not isinstance(definition, ast.FunctionDef):
        raise TypeError(f"{function!r} is not a function with a source of its own")
    typed = [ast.arg(leaf.name, ast.Name(leaf.type.__name__)) for leaf in leaves]
    definition.args.args[:1] = typed
    collected = ast.Dict([ast.Constant(leaf.path) for leaf in leaves], [ast.Name(leaf.name) for leaf in leaves])
    definition.body.insert(1, ast.Assign([ast.Name("leaves")], collected))  # after the docstring
    source = ast.unparse(ast.fix_missing_locations(tree)) + "\n"

    name = f"<{function.__module__}.{function.__name__} with {len(leaves)} leaves, {hash(source):x}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace = dict(inspect.getmodule(function).__dict__)
    exec(compile(source, name, "exec"), namespace)
    made: Callable[..., Any] = namespace[function.__name__]
    return made


def signature_of(leaves: Iterable[Leaf], more: Mapping[str, tuple[type, Any]]) -> inspect.Signature:
    """Make the signature of a pipeline: every leaf with its default, and further inputs by name, type and default."""
    inputs = {leaf.name: (leaf.type, leaf.value) for leaf in leaves} | dict(more)
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
            for name, (kind, default) in inputs.items()
        ]
    )
