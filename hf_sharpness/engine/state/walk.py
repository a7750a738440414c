"""One walk over Python objects: what it does with each kind of them."""

from __future__ import annotations

import contextlib
import sys
import types
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from . import bounds
from .code import functions_of, globals_set_in, is_own, names_in
from .frontier import Frontier
from .holders import LONGEST, Array, Cell, ClassValues, Elements, Names, Numbers, Slots
from .on_weights import Attributes
from .paths import Path
from .services import holders_of, holds_locks_alone
from .visits import is_looked_into, visit_of

_OF_A_MODULE = frozenset(vars(nn.Module()))
_OF_AN_OPTIMIZER = frozenset(vars(torch.optim.SGD([torch.zeros(1)], lr=0.1))) | {"step", "zero_grad"}
_OF_A_LOADER = frozenset(vars(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(1)))))
_OF_A_DATASET = frozenset({"dataset", "datasets", "tensors", "indices", "cumulative_sizes"})


class Walk(Frontier):
    """Visits the objects that are put into its queue, and notes what they hold: a method for each kind of them."""

    def tensor(self, tensor: Tensor, path: Path) -> None:
        self.hooks_of(tensor, path)
        if self.is_weight(tensor):
            return
        self.reached.tensors.append((path, tensor))
        if not self.binds_weights and (type(tensor) in (Tensor, nn.Parameter) or bounds.own_classes(type(tensor))):
            attributes = Attributes(vars(tensor))  # a queue's pointer: self.queue.at
            kept = attributes.of_the_user()
            if kept or self.changing is None:
                self.reached.holders.append(attributes)
                self.put_all(kept.items(), path)

    def hooks_of(self, tensor: Tensor, path: Path) -> bool:
        """What is called with a tensor's gradient; returns whether there is anything."""
        if not (tensor._backward_hooks or tensor._post_accumulate_grad_hooks):
            return False
        found = [*(tensor._backward_hooks or {}).items(), *(tensor._post_accumulate_grad_hooks or {}).items()]
        self.put_all(found, (path, "hooks"))
        return True

    def generator(self, generator: Any, path: Path) -> None:
        self.reached.generators.append(generator)
        if bounds.own_classes(type(generator)):
            self.attributes(generator, path)

    def iterator(self, iterator: Any, path: Path) -> None:
        self.reached.iterators.append(iterator)

    def loader(self, loader: Any, path: Path) -> None:
        """What a data loader draws its order from; a sampler of the user's may be told which examples are hard."""
        batches = loader.batch_sampler
        samplers = (loader.sampler, batches, getattr(batches, "sampler", None))
        for drawing in (*samplers, *(getattr(d, "generator", None) for d in (loader, *samplers))):
            self.put(drawing, path)
        if type(loader) is torch.utils.data.DataLoader or bounds.own_classes(type(loader)):
            self.attributes(loader, path, _OF_A_LOADER)

    def optimizer(self, optimizer: Any, path: Path) -> None:
        """One that a pass steps: it trains other tensors than the base optimizer.

        Of that one passes may write what its hooks gather: the factors of a preconditioner (K-FAC).
        """
        package = bounds.module_of(type(optimizer)).partition(".")[0]
        if package == "torch" or package not in bounds.PRIVATE_TO_LIBRARIES:
            self.attributes(optimizer, path, _OF_AN_OPTIMIZER)
        if self.has_weight(optimizer.param_groups):
            return
        self.reached.optimizers.add(id(optimizer))
        inner = bounds.attributes_of(optimizer).get("optimizer")  # Accelerate's stands before another
        for contents in (optimizer.state, *optimizer.param_groups, *optimizer.state.values(), inner):
            self.put(contents, path)

    def scheduler(self, scheduler: Any, path: Path) -> None:
        """A pass may step it. The base optimizer's functions of the step may refer to all of the training."""
        if self.has_weight(getattr(bounds.attributes_of(scheduler).get("optimizer"), "param_groups", ())):
            self.skips[id(scheduler)] = frozenset({"optimizer", "lr_lambdas"})
        self.instance(scheduler, path)
        self.put(bounds.attributes_of(scheduler).get("scheduler"), path)  # behind Accelerate's

    def has_weight(self, groups: Iterable[dict[str, Any]]) -> bool:
        """Whether an optimizer with these groups is the base one."""
        return any(self.is_weight(p) for group in groups for p in group["params"])

    def dataset(self, dataset: Any, path: Path) -> None:
        """A library's: the datasets, or the tensors, that it was made of (``Subset``, ``TensorDataset``)."""
        for name in ("dataset", "datasets", "tensors"):
            self.put(bounds.attributes_of(dataset).get(name), (path, name))
        if bounds.module_of(type(dataset)).startswith("torch."):
            self.attributes(dataset, path, _OF_A_DATASET)

    def scripted(self, module: Any, path: Path) -> None:
        """TorchScript has the attributes of its modules to itself; tensors can be had."""
        self.put_all(module.named_buffers(), path)

    def wrapper(self, module: nn.Module, path: Path) -> None:
        self.reached.wrappers.add(id(module))
        for inner in module._modules.values():
            self.put(inner, path)

    def module(self, module: nn.Module, path: Path) -> None:
        own = module.__dict__
        librarys = not bounds.own_classes(type(module))
        holder = Names(own, self.skips.get(id(module), frozenset()), is_librarys=librarys)
        quiet, inner, hooks = not holder.skip and librarys, [], []
        for name, value in own.items():
            if bounds.holds_nothing(value):
                continue
            if name == "_modules":
                self.put_all(value.items(), path)
            elif name == "_parameters":
                quiet = self.parameters(value, path) and quiet
            elif name == "_buffers":
                inner.append(value)
                if value:
                    self.reached.holders.append(Names(value))
                    self.put_all(value.items(), path)
            elif name in _OF_A_MODULE:
                if isinstance(value, dict):
                    hooks.append(value)
                    self.put_all(value.items(), (path, name))
            elif isinstance(value, nn.Module):
                self.put(value, (path, name))
            elif visit_of(type(value)) is not None:
                quiet = False
                self.put(value, (path, name))
        inner += hooks
        if quiet and not any(inner) and self.quiet.add(module, holder, inner):
            return
        self.reached.hooks += hooks
        self.reached.holders.append(holder)
        self.quiet.others.append((module, path))
        self.class_of(module, path)

    def parameters(self, parameters: dict[str, Any], path: Path) -> bool:
        """Returns whether all are weights."""
        others = [p for p in parameters.values() if p is not None and not self.is_weight(p)]
        if others and not self.binds_weights:
            self.reached.holders.append(Names(parameters))
        self.put_all(parameters.items() if others else (), path)
        hooked = [self.hooks_of(p, (path, name)) for name, p in parameters.items() if p is not None]
        return not others and not any(hooked)

    def instance(self, value: Any, path: Path) -> None:
        skip = self.skips.get(id(value), frozenset()) or bounds.large_in(value)
        contents = bounds.contents_of(value, skip)
        if skip or not self.is_left_alone(value, contents, path, told=True):
            self.note_attributes(value, contents, path, skip)

    def attributes(self, value: Any, path: Path, librarys: frozenset[str] = frozenset()) -> None:
        """What the user keeps on an object of a library's, or of a class derived from a library's or from Python's.

        Args:
            value: the object.
            path: where it was found.
            librarys: names of the attributes that are the library's.
        """
        contents = bounds.contents_of(value, librarys)
        if not self.is_left_alone(value, contents, path, told=not librarys):
            self.note_attributes(value, contents, path, librarys)

    def is_left_alone(self, value: Any, contents: dict[str, Any], path: Path, told: bool) -> bool:
        """Whether other threads may write to an object. One of the user's is noted where that is to be told."""
        held = contents.values()
        if not bounds.is_a_service(held):
            return False
        if told and self.changing is None and bounds.own_classes(type(value)) and holds_locks_alone(held):
            self.reached.services += holders_of(value, path)
        return True

    def note_attributes(self, value: Any, contents: dict[str, Any], path: Path, skip: frozenset[str]) -> None:
        if type(value).__dictoffset__:
            self.reached.holders.append(Names(bounds.attributes_of(value), skip))
        if slots := bounds.slots_of(type(value)):
            self.reached.holders.append(Slots(value, slots))
        self.put_all(contents.items(), path)
        self.class_of(value, path)

    def class_of(self, value: Any, path: Path) -> None:
        """What a class of the user's holds, and what its methods refer to: the script's variables."""
        self.classes(bounds.own_classes(type(value)))

    def classes(self, kinds: Iterable[type]) -> None:
        for kind in kinds:
            if id(kind) not in self.seen:
                self.seen.add(id(kind))
                self.reached.holders.append(ClassValues(kind))
                self.put_all(ClassValues.of(kind), (None, kind.__name__))
                for function in functions_of(kind):
                    self.put(function, (None, kind.__name__))

    def mapping(self, value: Any, path: Path) -> None:
        is_long, skip = dict.__len__(value) > LONGEST, self.skips.get(id(value), frozenset())
        if not is_long or self.changes(value):
            self.reached.holders.append(Names(value, skip, is_dict=True))
        if not is_long:
            self.put_all(((bounds.label(key), v) for key, v in dict.items(value) if key not in skip), path)
        if type(value) not in bounds.PLAIN:
            self.attributes(value, path)

    def elements(self, value: Any, path: Path) -> None:
        kind = next(k for k in (list, deque, set) if isinstance(value, k))
        self.reached.holders.append(Elements(value, whole=self.changes(value)))
        if kind.__len__(value) <= LONGEST:
            self.put_elements(list(kind.__iter__(value)), path)
        if type(value) is not kind:
            self.attributes(value, path)

    def tuple(self, value: Any, path: Path) -> None:
        if tuple.__len__(value) <= LONGEST:
            self.put_elements(list(tuple.__iter__(value)), path)
        if type(value) is not tuple:
            self.attributes(value, path)

    def put_elements(self, elements: list[Any], path: Path) -> None:
        if is_looked_into(elements):
            self.put_all(enumerate(elements), path)

    def array(self, value: Any, path: Path) -> None:
        if not value.flags.writeable or value.dtype.hasobject or self.is_weight(value):
            return
        numpy = sys.modules["numpy"]
        if bounds.own_classes(type(value)):
            self.attributes(value, path)
            value = numpy.ndarray.view(value, numpy.ndarray)
        if value.nbytes <= bounds.LARGEST_ARRAY:
            self.reached.holders.append(Array(value))
            return
        with contextlib.suppress(TypeError, ValueError):  # negative strides, records that do not lie side by side
            try:
                tensor = torch.from_numpy(value)
            except TypeError:  # dates, text, records; of a file they are data
                if isinstance(value, numpy.memmap):
                    return
                tensor = torch.from_numpy(value.view("uint8"))
            self.reached.tensors.append((path, tensor))

    def numbers(self, value: Any, path: Path) -> None:
        if memoryview(value).nbytes <= bounds.LARGEST_ARRAY:
            self.reached.holders.append(Numbers(value))

    def method(self, value: Any, path: Path) -> None:
        self.put(value.__self__, path)
        self.put(getattr(value, "__func__", None), path)  # of an object of C's (``rng.random``) there is none

    def partial(self, value: Any, path: Path) -> None:
        self.put(value.func, path)
        self.put(value.args, path)
        self.put(value.keywords, path)

    def function(self, value: types.FunctionType, path: Path) -> None:
        own = is_own(value.__module__ if type(value.__module__) is str else "")
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            if id(cell) not in self.seen:
                self.seen.add(id(cell))
                holder = Cell(cell)
                if own:
                    self.reached.holders.append(holder)
                for _, inner in holder.items():
                    self.put_variable(inner, (path, name))
        self.put(value.__defaults__, path)
        self.put(value.__kwdefaults__, path)
        self.put_all(value.__dict__.items(), path)
        if own:
            self.reached.holders.append(Names(value.__dict__))  # empty ones too: a counter may be made on the way
            self.variables_of(value)

    def variables_of(self, function: types.FunctionType) -> None:
        """The variables of scripts and modules of the user's that a function refers to."""
        self.refer(function.__globals__, names_in(function.__code__))
        self.variables[id(function.__globals__)][1].update(globals_set_in(function.__code__))  # not made yet, perhaps

    def refer(self, variables: dict[str, Any], names: frozenset[str]) -> None:
        path = (None, variables.get("__name__", ""))
        known = self.variables.setdefault(id(variables), (variables, set()))[1]
        for name in names:
            value = variables.get(name, sys.modules.get(name))  # it may be imported in the function
            if type(value) is types.ModuleType and is_own(value.__name__):
                self.refer(vars(value), names - {name})  # module.name
            elif name in variables and name not in known:
                known.add(name)
                self.put_variable(value, (path, name))

    def put_variable(self, value: Any, path: Path) -> None:
        """What a name in code stands for: a class too, in whose own values something may be counted."""
        if isinstance(value, type):
            self.classes(bounds.own_classes(value))
        else:
            self.put(value, path)
