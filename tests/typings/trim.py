"""The signatures of TensorRT's Python API that sprfast uses, out of those of the whole API.

    python tests/typings/trim.py FOLDER

writes `tensorrt-VERSION/tensorrt/__init__.pyi` beside this file for each version in FOLDER. Needed
where a module of ours calls something new: mypy misses it in what is kept here.
"""

import ast
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
MODULES = sorted((HERE.parents[1] / "sprfast" / "backends" / "sessions").glob("tensorrt*.py"))
HEADER = (
    "# Made by tests/typings/trim.py: what sprfast uses of TensorRT {version}.\nfrom __future__ import annotations\n\n"
)
SPECIAL = {"__init__", "__len__", "__getitem__", "__int__"}  # which are called without being named
OPEN = {"list": "list[typing.Any]", "tuple": "tuple[typing.Any, ...]"}
# the documentation has it, the signatures do not
BUFFERS = {"IHostMemory": "def __buffer__(self, flags: int, /) -> memoryview: ..."}


def used(sources):
    """Names behind a dot anywhere in the sources, and those right behind `trt`."""
    attributes, top = set(), set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute):
                attributes.add(node.attr)
                if isinstance(node.value, ast.Name) and node.value.id == "trt":
                    top.add(node.attr)
            elif isinstance(node, ast.FunctionDef):  # methods of TensorRT's classes that ours override
                attributes.add(node.name)
    return attributes, top


class Cleaned(ast.NodeTransformer):
    """Types that the signatures leave open become Any, and defaults, some of which are not of their
    type, dots.
    """

    def visit_arguments(self, node):
        for argument in (*node.posonlyargs, *node.args, *node.kwonlyargs):
            if argument.annotation is not None:
                argument.annotation = self.typed(argument.annotation)
        node.defaults = [ast.Constant(...) for _ in node.defaults]
        return node

    def visit_FunctionDef(self, node):
        self.visit(node.args)
        node.returns = self.typed(node.returns)
        node.body = [ast.Expr(ast.Constant(...))]
        return node

    def visit_AnnAssign(self, node):
        node.annotation = self.typed(node.annotation)
        node.value = None
        return node

    @staticmethod
    def typed(annotation):
        class Any(ast.NodeTransformer):
            def visit_Constant(self, node):
                return ast.parse("typing.Any", mode="eval").body if node.value is ... else node

        text = ast.unparse(Any().visit(annotation))
        return ast.parse(OPEN.get(text, text), mode="eval").body


def kept(classdef, attributes):
    """The class with the members that are used; of an enumeration all, to tell one that was removed
    from one that never was.
    """
    body = []
    for member in classdef.body:
        if isinstance(member, ast.ClassDef):
            if member.name in attributes:
                body.append(kept(member, attributes))
        elif (isinstance(member, ast.FunctionDef) and member.name in attributes | SPECIAL) or (
            isinstance(member, ast.AnnAssign) and (member.target.id in attributes or member.target.id.isupper())
        ):
            body.append(Cleaned().visit(member))
    if classdef.name in BUFFERS:
        body += ast.parse(BUFFERS[classdef.name]).body
    return ast.ClassDef(classdef.name, classdef.bases, [], body or [ast.Pass()], [], **_TYPE_PARAMS)


_TYPE_PARAMS = {"type_params": []} if sys.version_info >= (3, 12) else {}


def trimmed(stub, attributes, top):
    """The stub with the classes in `top`, those that their used members need, and nothing else."""
    classes = {node.name: node for node in ast.parse(stub).body if isinstance(node, ast.ClassDef)}
    wanted, done = [name for name in top if name in classes], {}
    while wanted:
        name = wanted.pop()
        if name not in done:
            done[name] = kept(classes[name], attributes)
            named = {node.id for node in ast.walk(done[name]) if isinstance(node, ast.Name)}
            wanted += sorted(named & classes.keys())
    ordered = [done[name] for name in classes if name in done]
    text = "\n\n".join(ast.unparse(ast.fix_missing_locations(node)) for node in ordered) + "\n"
    text = re.sub(r":\n +\.\.\.\n", ": ...\n", text)
    own = "".join(f"import {name}\n" for name in ("collections.abc", "typing") if f"{name}." in text)
    return own + ("\nimport typing_extensions\n" if "typing_extensions." in text else "") + "\n" + text


def main(folder):
    """Write the trimmed signatures of every version in `folder`."""
    attributes, top = used(path.read_text("utf-8") for path in MODULES)
    for path in sorted(Path(folder).glob("tensorrt-*/tensorrt/__init__.pyi")):
        version = path.parts[-3].partition("-")[2]
        target = HERE / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(HEADER.format(version=version) + trimmed(path.read_text("utf-8"), attributes, top), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
