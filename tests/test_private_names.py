"""Private names of other packages that we use: all are listed here, and the installed versions still have them.

An upgrade may remove or change them without notice. So take a public name where the package has one in every version
that setup.cfg allows; otherwise list the private one with the reason.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

import pytest

import dlrm_torchrec

ROOT = Path(__file__).parents[1]
FOLDERS = ("dlrm_torchrec", "recipes", "data", "torchx_components", "benchmarks", "docs", "requirements", "tests")
DOCUMENTED = {"_exit", "_replace", "_asdict"}  # of os, of named tuples


class Private(NamedTuple):
    """Private names of one class or module of another package, and what we need them for."""

    home: str
    names: list[str]
    files: list[str]  # of ours, all of which use all of the names
    reason: str


SHARDING = "dlrm_torchrec/sharding"
SHARDED_TABLES = "torchrec.distributed.embeddingbag.ShardedEmbeddingBagCollection"
LOOKUP = "torchrec.distributed.embedding_lookup.GroupedPooledEmbeddingsLookup"
METADATA = ["dlrm_torchrec/train/checkpoints/metadata.py", "tests/test_stack.py"]
RECORD = "A checkpoint's metadata is a pickle that names it; a name that is not on our list is refused."
GROUPS = "The tables of each rank as TorchRec groups them for its lookups; ours are built from the same groups."

LIST = [
    # torch: an optimizer in backward
    Private(
        "torch.distributed.optim",
        ["_apply_optimizer_in_backward"],
        [
            "benchmarks/cpu_training.py",
            "dlrm_torchrec/cli/trial.py",
            "dlrm_torchrec/train/optimizers.py",
            "tests/device/on_device.py",
            "tests/device/test_overlap.py",
            "tests/sharding/modules/managed/test_sharded.py",
            "tests/sharding/modules/test_concurrent.py",
            "tests/sharding/sharded.py",
            "tests/test_stack.py",
        ],
        "TorchRec's public function is deprecated, and says to call this one.",
    ),
    Private(
        "torch.distributed.optim.apply_optimizer_in_backward",
        ["_optimizer_classes"],
        [
            f"{SHARDING}/modules/concurrent.py",
            f"{SHARDING}/modules/sharder.py",
            f"{SHARDING}/planner/enumerator.py",
        ],
        "The only mark on a table of the optimizer that updates it; TorchRec's planner reads it, too.",
    ),
    Private(
        "torch.distributed.optim.apply_optimizer_in_backward",
        ["_optimizer_kwargs"],
        ["tests/train/test_optimizers.py"],
        "What FBGEMM is told about the optimizer.",
    ),
    Private(
        "torch.distributed.optim.apply_optimizer_in_backward",
        ["_in_backward_optimizers"],
        ["tests/device/test_meta.py"],
        "The only mark on a parameter whose gradient is used up in backward.",
    ),
    # torch: the double of a GPU
    Private(
        "torch.Tensor",
        ["_make_wrapper_subclass"],
        ["tests/device/double.py"],
        "No public function makes a tensor that says that it is on another device than its numbers.",
    ),
    Private(
        "torch",
        ["_C"],
        ["tests/device/double.py"],
        "It has what torch's own subclasses of tensors set __torch_function__ to.",
    ),
    Private(
        "torch._C",
        ["_disabled_torch_function_impl"],
        ["tests/device/double.py"],
        "It is what torch's own subclasses of tensors set __torch_function__ to.",
    ),
    Private(
        "torch.utils._python_dispatch",
        ["_disable_current_modes"],
        ["tests/device/on_device.py"],
        "What stands in for a kernel is one operator, and those inside of it are not counted.",
    ),
    Private(
        "torch.testing",
        ["_internal"],
        ["tests/device/on_device.py"],
        "The only module that has the store of torch's fake process group.",
    ),
    # torch: torchrun
    Private(
        "torch.distributed.elastic.multiprocessing.api.MultiprocessContext",
        ["_worker_finished_event"],
        ["tests/launched.py"],
        "Without it, ranks that are functions, not scripts, outlive an agent that was killed.",
    ),
    # torch: process groups of ranks that are threads
    Private(
        "torch",
        ["_C"],
        ["tests/collectives/group.py", "tests/collectives/ranks.py"],
        "Process groups in Python need two functions of it.",
    ),
    Private(
        "torch._C",
        ["_distributed_c10d"],
        ["tests/collectives/group.py", "tests/collectives/ranks.py"],
        "Process groups in Python need two functions of it.",
    ),
    Private(
        "torch._C._distributed_c10d",
        ["_create_work_from_future"],
        ["tests/collectives/group.py"],
        "DDP's C++ waits for what a process group in Python returns.",
    ),
    Private(
        "torch._C._distributed_c10d",
        ["_set_thread_isolation_mode"],
        ["tests/collectives/ranks.py"],
        "Ranks that are threads have groups of equal names.",
    ),
    Private(
        "torch.testing",
        ["_internal"],
        ["tests/collectives/ranks.py"],
        "The only module with a list of process groups for each thread.",
    ),
    # torch: operators
    Private(
        "torch.ops.c10d",
        ["_allgather_base_", "_reduce_scatter_base_"],
        ["dlrm_torchrec/train/timing/wire.py"],
        "The operators behind all_gather_into_tensor and reduce_scatter_tensor, whose bytes are counted.",
    ),
    Private(
        "torch.utils",
        ["_python_dispatch"],
        [
            "dlrm_torchrec/train/timing/wire.py",
            "tests/collectives/device.py",
            "tests/device/double.py",
            "tests/device/on_device.py",
            "tests/embeddings/compositional/partitions/test_assigned.py",
            "tests/sharding/modules/test_operator_counts.py",
        ],
        "The only module that has TorchDispatchMode, which sees every operator that runs.",
    ),
    Private(
        "torch.ops.aten",
        ["_to_copy"],
        ["tests/device/double.py", "tests/embeddings/compositional/partitions/test_assigned.py"],
        "The operator behind Tensor.to.",
    ),
    Private(
        "torch",
        ["_assert_async"],
        [f"dlrm_torchrec/embeddings/compositional/{name}.py" for name in ("row_map", "sources")],
        "No public function checks a tensor on a GPU without waiting for it.",
    ),
    Private(
        "torch",
        ["_int_mm"],
        [
            "benchmarks/int64_gemm.py",
            "benchmarks/int8_gemm.py",
            "dlrm_torchrec/inference/integers/int64_matmul.py",
            "tests/inference/integers/test_int64_matmul.py",
        ],
        "No public function multiplies matrices of 8-bit integers on a GPU.",
    ),
    Private(
        "torch",
        ["_make_per_channel_quantized_tensor"],
        ["dlrm_torchrec/inference/mlps/linear.py"],
        "quantize_per_channel takes floats and would round them again, wrongly where a scale is below 1e-38.",
    ),
    # torch: modules
    Private(
        "torch.nn.Module",
        ["_modules"],
        ["dlrm_torchrec/inference/mlps/quantize.py"],
        "A shallow copy of a module shares this dictionary with it and needs one of its own.",
    ),
    Private(
        "torch.nn.Module",
        ["_forward_pre_hooks"],
        ["tests/inference/mlps/test_quantize.py"],
        "No public method lists a module's hooks.",
    ),
    Private(
        "torch.fx",
        ["_symbolic_trace"],
        ["dlrm_torchrec/terminal/quiet.py"],
        "The name of a logger whose warnings are kept off the terminal.",
    ),
    # torch: checkpoints
    Private("torch.distributed.checkpoint.metadata", ["_MEM_FORMAT_ENCODING"], METADATA, RECORD),
    Private(
        "torch.distributed.checkpoint.filesystem",
        ["_StorageInfo"],
        ["dlrm_torchrec/train/checkpoints/storage.py", *METADATA],
        RECORD,
    ),
    Private("torch.serialization", ["_get_layout"], METADATA, RECORD),
    # TorchRec: sharded tables
    Private(
        SHARDED_TABLES,
        [
            "_create_output_dist",
            "_device",
            "_dim_per_key",
            "_embedding_dims",
            "_embedding_names",
            "_update_output_dist",
        ],
        [f"{SHARDING}/modules/compositional.py"],
        "TorchRec divides the sums of mean pooling by these names and dims, so renaming its result would be too late.",
    ),
    Private(
        SHARDED_TABLES,
        ["_lookups"],
        [
            f"{SHARDING}/caches.py",
            f"{SHARDING}/modules/concurrent.py",
            f"{SHARDING}/modules/managed/sharded.py",
            "dlrm_torchrec/train/timing/timed_step.py",
            "tests/sharding/test_caches.py",
            "tests/device/on_device.py",
            "tests/device/test_overlap.py",
            "tests/sharding/modules/test_concurrent.py",
            "tests/sharding/modules/test_operator_counts.py",
            "tests/sharding/modules/test_sorted_training.py",
        ],
        "They are in a plain list, so modules() does not find them.",
    ),
    Private(
        SHARDED_TABLES,
        ["_output_dists"],
        ["tests/device/test_overlap.py"],
        "They are in a plain list, too.",
    ),
    Private(
        SHARDED_TABLES,
        ["_create_lookups"],
        [f"{SHARDING}/modules/concurrent.py"],
        "Kernels exist after it, and their optimizers have not been collected yet.",
    ),
    Private(
        "torchrec.distributed.types.ShardedTensor",
        ["_init_from_local_shards_and_global_metadata"],
        [f"{SHARDING}/modules/managed/shards.py"],
        "Maps of ids are saved like the rows of their tables; public constructors ask all ranks for what each knows.",
    ),
    Private(
        "torchrec.modules.mc_modules.MCHEvictionPolicy",
        ["_compute_selected_eviction_and_replacement_indices"],
        ["dlrm_torchrec/embeddings/managed/policies.py"],
        "Where TorchRec's eviction policies compare scores: ours compare those of one bucket.",
    ),
    Private(
        "torchrec.distributed.batched_embedding_kernel.BatchedFusedEmbeddingBag",
        ["_optim", "_pg"],
        [f"{SHARDING}/modules/concurrent.py"],
        "A kernel made for Adagrad gets the optimizer that names Adam's moments.",
    ),
    Private(
        "torchrec.distributed.embedding_sharding",
        ["_batch_key"],
        [f"{SHARDING}/modules/compositional.py", f"{SHARDING}/modules/concurrent.py"],
        "TorchRec makes one kernel of tables with equal keys; no public parameter tells it which tables to part.",
    ),
    Private(
        "torchrec.distributed.sharding.tw_sharding.BaseTwEmbeddingSharding",
        ["_grouped_embedding_configs", "_grouped_embedding_configs_per_rank"],
        [f"{SHARDING}/modules/composed_shardings.py"],
        GROUPS,
    ),
    Private(
        "torchrec.distributed.sharding.tw_sharding.BaseTwEmbeddingSharding",
        ["_device", "_grouped_embedding_configs", "_pg"],
        ["docs/examples/square_tables.py"],
        "What TorchRec's own table-wise sharding gives to its lookup.",
    ),
    Private(
        "torchrec.distributed.sharding.twrw_sharding.BaseTwRwEmbeddingSharding",
        ["_grouped_embedding_configs_per_node"],
        [f"{SHARDING}/modules/composed_shardings.py"],
        GROUPS,
    ),
    Private(
        "torchrec.distributed.sharding.twrw_sharding.BaseTwRwEmbeddingSharding",
        ["_intra_pg"],
        [f"{SHARDING}/modules/composed_shardings.py"],
        "The ranks of a host, which share the rows of a table; a second group of them would be one to keep in order.",
    ),
    # TorchRec: parts of modules
    Private(
        LOOKUP,
        ["_create_embedding_kernel"],
        [
            f"{SHARDING}/modules/composed_kernels.py",
            f"{SHARDING}/modules/sequences/lookup.py",
            "tests/collectives/device.py",
        ],
        "The only place where a lookup can be given a kernel of our own.",
    ),
    Private(
        "torchrec.distributed.embedding.ShardedEmbeddingCollection",
        ["_initialize_torch_state"],
        ["tests/device/on_device.py"],
        "It slices tables of single ids into parameters, which the double of a GPU does not have.",
    ),
    Private(
        LOOKUP,
        ["_emb_modules"],
        [f"{SHARDING}/modules/concurrent.py"],
        "The kernels of a lookup, each of which gets a thread.",
    ),
    Private(
        LOOKUP,
        ["_feature_splits"],
        [f"{SHARDING}/modules/composed_kernels.py", f"{SHARDING}/modules/concurrent.py"],
        "How many features each kernel takes: a compositional one takes fewer than TorchRec counts.",
    ),
    Private(
        "torchrec.modules.mlp.Perceptron",
        ["_activation_fn", "_linear"],
        ["dlrm_torchrec/inference/mlps/quantize.py"],
        "An int8 layer replaces them both.",
    ),
    # iopath
    Private(
        "iopath.common.file_io.PathHandler",
        ["_exists", "_get_supported_prefixes", "_isdir", "_isfile", "_ls", "_mkdirs", "_mv", "_open", "_rm"],
        ["dlrm_torchrec/datasets/prepared/stores.py"],
        "A handler is written by overriding them, as iopath's documentation says.",
    ),
    # pip
    Private(
        "pip",
        ["_internal"],
        ["requirements/lock.py"],
        "Where no index is configured, pip asks the one that it knows, and no command says which.",
    ),
    # Python
    Private(
        "argparse.ArgumentParser",
        ["_actions"],
        ["docs/reference_pages.py", "tests/test_docs.py"],
        "No public method lists a parser's options.",
    ),
    Private(
        "argparse",
        ["_SubParsersAction"],
        ["docs/reference_pages.py"],
        "An argument whose values are commands, which have pages of their own.",
    ),
]
NAMES = {name: private for private in LIST for name in private.names}
Classes = dict[str, list[ast.ClassDef]]  # by name


def python_files() -> Iterator[Path]:
    """Our own source, without following links (the library links to the recipes)."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                yield path


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[A-Za-z0-9]\w*", name) is not None and name not in DOCUMENTED


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def defined(tree: ast.AST) -> set[str]:
    """Private names of classes, functions, variables and attributes of ``self`` that the source creates."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
    return set(filter(is_private, names))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def of_others(tree: ast.Module, classes: Classes, ours: Set[str] = frozenset()) -> Iterator[tuple[int, str]]:
    """Line and name of each use of a private name that is neither one of ``ours`` nor of the class it is used in.

    A string counts where it names an attribute (``getattr`` and its like), and wherever it is a name of the list.
    """
    for line, name in imported(tree):
        package, *names = name.split(".")
        if package not in {*FOLDERS, *sys.stdlib_module_names}:
            yield from ((line, part) for part in names if is_private(part))
    own = {node for kind in ast.walk(tree) if isinstance(kind, ast.ClassDef) for node in uses_of_own(kind, classes)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if node not in own and node.attr not in ours:
                yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and re.search(r"\b(get|set|has|del)attr$", ast.unparse(node.func)):
            for value in [argument.value for argument in node.args if isinstance(argument, ast.Constant)]:
                if isinstance(value, str) and is_private(value) and value not in ours:
                    yield node.lineno, value
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.rpartition(".")[2]
            if name in NAMES:
                yield node.lineno, name


def uses_of_own(kind: ast.ClassDef, classes: Classes) -> Iterator[ast.Attribute]:
    """``self._name`` in a class, where the class or a base of ours creates the name."""
    kinds = [kind]
    for each in kinds:  # it grows by the bases
        bases = [base for name in each.bases if isinstance(name, ast.Name) for base in classes.get(name.id, [])]
        kinds += [base for base in bases if base not in kinds]
    own = {name for each in kinds for name in defined(each)}
    for node in ast.walk(kind):
        if isinstance(node, ast.Attribute) and is_self(node.value) and node.attr in own:
            yield node


def used() -> dict[tuple[str, str], int]:
    """(name, file) -> line of a use of each private name of other packages in our source."""
    trees = {path: ast.parse(path.read_text()) for path in python_files() if path != Path(__file__)}
    classes: Classes = defaultdict(list)
    for kind in (node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        classes[kind.name].append(kind)
    found: dict[tuple[str, str], int] = {}
    for path, tree in trees.items():
        file, ours = str(path.relative_to(ROOT)), set[str]()
        if file.startswith("tests/"):  # which look into what they test
            near = [trees.get(ROOT / f"{module.replace('.', '/')}.py") for module in modules(tree)]
            ours = {name for each in (tree, *near) if each for name in defined(each)}
        found |= {(name, file): line for line, name in of_others(tree, classes, ours)}
    return found


def modules(tree: ast.Module) -> Iterator[str]:
    """Dotted names of what is imported, and of what that is imported from."""
    for _, name in imported(tree):
        yield from (name, name.rpartition(".")[0])


def created_by(kind: type) -> set[str]:
    """Private names of the methods and attributes of a class, without those of its bases."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # not written in Python
        return set(filter(is_private, vars(kind)))
    return defined(ast.parse(textwrap.dedent(source)))


def classes_of_the_library() -> Iterator[type]:
    for info in pkgutil.walk_packages(dlrm_torchrec.__path__, "dlrm_torchrec."):
        for value in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(value) and value.__module__ == info.name:
                yield value


def replaced() -> dict[tuple[str, str], int]:
    """(name, file) -> line of each class of the library with a private name that a base in another package has."""
    kinds = set(classes_of_the_library())
    bases = {kind: [base for base in kind.__mro__ if base not in kinds] for kind in kinds}
    theirs = {base: created_by(base) for base in {base for others in bases.values() for base in others}}
    found: dict[tuple[str, str], int] = {}
    for kind in kinds:
        file, line = f"{kind.__module__.replace('.', '/')}.py", inspect.getsourcelines(kind)[1]
        names = created_by(kind) & {name for base in bases[kind] for name in theirs[base]}
        found |= {(name, file): line for name in names}
    return found


def test_the_list_is_what_our_source_uses() -> None:
    found = replaced() | used()
    listed = {(name, file) for private in LIST for name in private.names for file in private.files}
    new = [f"{file}:{line}: {name}" for (name, file), line in found.items() if (name, file) not in listed]
    gone = [f"{file}: {name} is no longer used" for name, file in sorted(listed - found.keys())]
    assert not new + gone, "use public names instead of new ones, or list them; take out those that are gone"


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_packages_still_have_it(name: str) -> None:
    home = pkgutil.resolve_name(NAMES[name].home)
    assert hasattr(home, name) or re.search(rf"\b{name}\b", inspect.getsource(home)), NAMES[name]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\ntorch._new_thing()", [(2, "_new_thing")]),
        ("from torch._hidden import thing", [(1, "_hidden")]),
        ("from torchrec import _thing as thing", [(1, "_thing")]),
        ("import _thread\nfrom tests.recipe import _run", []),
        ("getattr(tensor, '_mark', None)", [(1, "_mark")]),
        ("patch.setattr(module, '_mark', None)", [(1, "_mark")]),
        ("key = '_batch_key'", [(1, "_batch_key")]),
        ("key = '_bucket'", []),
        ("super()._create()", [(1, "_create")]),
        ("class A:\n  def _own(self):\n    self._own()", []),
        ("class A:\n  def _own(self):\n    other._own()", [(3, "_own")]),
        ("class A:\n  def f(self):\n    self._own = 1\nclass B(A):\n  def f(self):\n    self._own", []),
        ("class A:\n  def f(self):\n    self._own = 1\nclass B:\n  def f(self):\n    self._own", [(6, "_own")]),
        ("pair._replace(first=1).__class__", []),
    ],
)
def test_each_kind_of_use_is_found(source: str, found: list[tuple[int, str]]) -> None:
    tree = ast.parse(source)
    classes = {node.name: [node] for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert list(of_others(tree, classes)) == found
