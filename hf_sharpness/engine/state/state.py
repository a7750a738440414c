"""Everything besides weights and gradients that the passes of a step may change, at the moments of the step."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ...vectors import is_sharded, local
from ..for_a_while import leave
from .checked_steps import CheckedSteps
from .discovery import Discovery
from .draws import StandIns
from .flags import Flags
from .generators import Standing, accelerators_of
from .holders import bytes_of, is_long_and_changed
from .moment import Moment
from .on_weights import OnWeights
from .paths import Path, Root
from .quiet import QuietModules, changed_of
from .reach import reach
from .reached import Reached
from .services import Services
from .tensors import Region, Watched, overlaps, ranges_of
from .told import CUT, changed_unseen
from .trained import Trained, TrainedInStep
from .writes import InnerSteps, Writes

if TYPE_CHECKING:
    from ..weights import Weights


class State:
    """Notes the state before each micro-batch's first pass and after the last one's, for a step's further passes.

    Args:
        weights: where the weights are, which are none of it.
        roots: where the state is looked for, beside the model. Default None: in what the closures refer to.
    """

    def __init__(self, weights: Weights, roots: Iterable[Root] | None = None) -> None:
        self.weights = weights
        self.roots = [Root("model", weights.model), *(roots or ())]
        self.closures = roots is None
        self.written: set[Path] = set()
        self.places: list[int] | None = None
        self.ranges: dict[int, list[tuple[int, int]]] = {}
        self.gradients: dict[int, list[tuple[int, int]]] = {}
        self.quiet = QuietModules()
        self.checked_steps = CheckedSteps(weights.optimizer)
        self.earlier: weakref.ref[Moment] | None = None
        self.met: list[weakref.ref[nn.Module]] = []
        self.stand_ins = StandIns(self._randomness)
        self.discovers = False
        self.looked_at: set[Path] = set()
        self.changing: set[int] = set()
        self.is_cut = False
        self.services = Services()
        self.batch: list[Root] = []
        self.trained = TrainedInStep()
        self.inner_steps = InnerSteps(self._writes)
        self.forget()

    def forget(self) -> None:
        """The step is over."""
        self.stand_ins.take_away()
        self.before: list[Moment] = []
        self.noted: list[Moment] = []
        self.after: Moment | None = None
        self.of_step: list[Root] = []
        self.weights_were_set = False
        self.trained.forget()
        self.inner_steps.leave()

    # The moments.

    def close(self) -> None:
        """Take the hook off the optimizer."""
        self.checked_steps.close()

    def begin(self, number: int) -> bool:
        """A step begins. In some, every operator of its passes is looked at for what it writes, which takes time.

        Args:
            number: the step's, from 1 on.

        Returns:
            Whether this is such a step.
        """
        self._begin(self.checked_steps.step_begins(number))
        return self.discovers

    def was_checked(self, checked: bool) -> None:
        """The passes of the step are over; whether what was to be looked at was there."""
        if checked:
            self.checked_steps.was_checked()

    def _begin(self, discover: bool) -> None:
        self.forget()
        self.discovers = discover
        parameters = self.weights.parameters()
        self.trained.begin(self.weights.optimizer.param_groups)
        self.optimized = {id(p) for p in parameters}
        self.on_weights = OnWeights(parameters, self.weights, whole=discover)
        places = [p.data_ptr() for p in parameters if not is_sharded(p)]
        if discover or places != self.places:
            self.quiet.clear()
            self.devices = accelerators_of(self.weights.model.parameters())
            self.places, self.ranges = places, ranges_of(local(parameters))

    def _randomness(self) -> Standing:
        """Where all random generators stand that the step's last moment knows of."""
        known = [*self._earlier(), *self.before][-1:]
        return Standing(self.devices, [own.generator for moment in known for own in moment.random.own])

    def _earlier(self) -> list[Moment]:
        """The moment from which the step may be taken anew, if there is one."""
        moment = self.earlier() if self.earlier is not None else None
        return [] if moment is None else [moment]

    def look_into(self, objects: list[Any]) -> None:
        """State of the coming pass, or of the one under way, is in these as well: parts of its batch."""
        if objects:
            self.batch.append(Root("batch", objects))

    def take(self, *closures: Callable[[], Tensor]) -> Moment:
        """The moment before a micro-batch's first pass.

        Args:
            closures: the micro-batch's, and one for a part of it.
        """
        self.of_step += self.batch
        self.batch = []
        if self.closures:
            self.of_step += [Root("closure", closure) for closure in closures]
        self.note_gradients()
        self._meet_trained()
        self.inner_steps.watch()
        moment = Moment(self, None, large=True)
        self._look_at_new(moment)
        if not self.before:
            moment.tensors.note_checksums(whole=self.discovers)
        self.before.append(moment)
        return moment

    def _meet_trained(self) -> None:
        """Those that were not trained at the step's beginning are weights from now on."""
        if new := self.trained.new(self.optimized):
            self.optimized |= set(map(id, new))
            self.ranges = ranges_of(local([p for p in self.trained.parameters if id(p) in self.optimized]))

    def train_all(self) -> None:
        """The first passes have been made: have all parameters trained that one of them has trained."""
        self.trained.train_all(moment.trained for moment in self.before)
        self._meet_trained()

    def _look_at_new(self, moment: Moment) -> None:
        """A step with frozen parameters that were not there (a teacher made on the way) is looked at closely, too."""
        new = {w.path for w in moment.tensors.bound if isinstance(w.tensor, nn.Parameter)} - self.looked_at
        self.looked_at |= new
        self.discovers |= bool(new)

    def include(self, module: nn.Module) -> None:
        """A first pass is about to call a module outside the model: if no walk comes to it, it is a root of its own."""
        if not self.before:
            return
        now = self.before[-1]
        known = self.quiet.ids | now.wrappers
        if id(module) not in known and not any(h.target is module.__dict__ for h, _ in now.contents):
            self.met.append(weakref.ref(module))
            now.include(self, module)

    def before_step(self) -> Moment:
        """The moment before a step begins, for it to be taken back."""
        self._begin(discover=False)
        moment = Moment(self, None, large=True)
        self.earlier = weakref.ref(moment)
        return moment

    def puts_back(self, optimizer: Optimizer) -> bool:
        """Whether a pass of the step under way may step an optimizer: what it holds is put back for the next one."""
        return any(id(optimizer) in moment.optimizers for moment in [*self.before, *self._earlier()])

    def note(self) -> Moment:
        """A moment within a first pass, for its replays to go on from."""
        self.of_step += self.batch
        self.batch = []
        moment = Moment(self, None, large=False)
        moment.hooks.leave_alone()  # those that the pass itself has registered until then are no state of another
        self.noted.append(moment)
        return moment

    def after_first_passes(self) -> Moment:
        """The moment that further passes are to leave behind."""
        first = self.before[0]
        for watched in first.tensors.written_unseen():
            self._notice(watched, "saw it changed")
        held = [pair for moment in self.before for pair in [*moment.contents, *changed_of(moment.quiet)]]
        if self.discovers:
            self.services.note(pair for moment in self.before for pair in moment.services)
            self.changing |= {id(holder.target) for holder, content in held if is_long_and_changed(holder, content)}
        if self.weights_were_set:  # an initialisation that depends on data, which is not to be made again
            for moment in self.before:
                moment.hooks.leave_alone()
        flags = Flags(held, self.weights_were_set, any(moment.hooks.are_changed() for moment in self.before))
        for moment in [*self.before, *self.noted]:
            moment.left_alone = flags
        self.note_gradients()
        self.after = Moment(self, first, large=True)
        self.after.trained = self.trained.take()
        self.after.tensors.note_checksums(whole=self.discovers)
        self.after.left_alone = flags.for_the_end()
        return self.after

    def leaves(self) -> list[Tensor]:
        """Tensors that are none of the weights and gather gradients, as reached after the first passes."""
        found = [watched.tensor for watched in self.after.tensors.bound] if self.after is not None else []
        return [tensor for tensor in found if tensor.requires_grad and tensor.is_leaf]

    def after_further_passes(self) -> None:
        """Everything has been put back: look whether they have written what was not copied."""
        if self.after is None:
            return
        for watched in self.after.tensors.written_unseen():
            self._notice(watched, "have changed it")
        self.services.tell(self.after.services)

    def parameters(self) -> list[nn.Parameter]:
        """The trainable weights."""
        return self.weights.parameters()

    def reach(self) -> Reached:
        """Walk the objects that a pass can reach."""
        self.met = [reference for reference in self.met if reference() is not None]
        met = [Root(type(module).__name__, module) for reference in self.met if (module := reference()) is not None]
        changing = None if self.discovers else self.changing
        roots = [*self.roots, *self.of_step, *met, *self.on_weights.roots()]
        found = reach(roots, self.is_weight, self.weights.binds_weights, self.quiet, changing)
        self.on_weights.add_to(found)
        if found.is_cut and not self.is_cut:
            self.is_cut = True
            warnings.warn(CUT, stacklevel=2)
        return found

    def is_weight(self, value: Any) -> bool:
        """Whether a tensor, or a NumPy array, is moved and put back as one of the weights."""
        if isinstance(value, Tensor):
            return id(value) in self.optimized or self.weights.is_weight(value)
        first, after = bytes_of(value)
        pieces = ((s + begin, s + end) for s, ranges in self.ranges.items() for begin, end in ranges)
        return overlaps(first, after, pieces)

    def lies_on_weights(self, region: Region) -> bool:
        """Whether a piece of memory overlaps that of the trainable weights, or their gradients: no state of a pass."""
        storage, first, after = region
        return overlaps(first, after, (*self.ranges.get(storage, ()), *self.gradients.get(storage, ())))

    def note_gradients(self) -> None:
        """The user's code may hold on to what is in p.grad now (``self.backup[name] = p.grad``)."""
        self.gradients = ranges_of(local([p.grad for p in self.weights.parameters() if p.grad is not None]))

    def _notice(self, watched: Watched, what: str) -> None:
        if watched.path in self.written:
            return
        self.written.add(watched.path)
        warnings.warn(changed_unseen(watched, what), stacklevel=2)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Around a pass. In a step that looks for what is written, that is saved just before it is."""
        if not self.discovers:
            yield
            self._note_trained()
            return
        writes = self._writes()

        def on_write(storage: int) -> None:
            self.weights_were_set |= storage in self.ranges
            writes.before_write(storage)

        mode = Discovery({*writes.by_storage, *self.ranges}, on_write)
        try:
            with mode:
                yield
        finally:
            leave(mode)
        self._note_trained()

    def _note_trained(self) -> None:
        """What the first pass of a micro-batch has itself frozen, or not, stays so for its further passes."""
        if self.after is None and self.before:
            self.before[-1].trained = Trained(self.trained.parameters)

    def _writes(self) -> Writes:
        return Writes([self.after] if self.after is not None else [*self.before, *self._earlier()], self.written)
