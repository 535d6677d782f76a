"""Time and traffic of a compiled program: every instruction once for each time it runs, on the resources of a chip.

The program is played in the order that XLA scheduled. Three resources have a clock each: the core, main memory, the links.

- An instruction takes the longest of FLOPs / peak, bytes / bandwidth and, where the compiler printed its own count of the core's
  cycles (TPUs), cycles / clock. FLOPs are matrix products'; everything else counts by the bytes that it moves. What lies in
  a core's own memory (TPUs' vector memory) moves none.
- A loop takes its body's time x its trips; a conditional its branches by their shares.
- Copies ahead of time and asynchronous collectives run beside the core until something waits for them.
- A collective takes its bytes' time and, beside it, the latency of its hops: the longest way between two of a group, twice for an
  all-reduce, which scatters and gathers. Many small ones, as in decoding on sharded weights, cost little else.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict

import numpy as np

from zoomearth_jax.hardware.chips import Chip
from zoomearth_jax.plan.hlo import COLLECTIVES, FREE, Computation, Instruction, Module, flops, traffic, trip_count


@dataclasses.dataclass
class Cost:
    """What a program costs one chip.

    Attributes:
        flops: FLOPs of matrix products, recomputed ones included.
        hbm_bytes: bytes between main memory and the core.
        seconds: time of the whole, and its parts: `compute` and `memory` of instructions that the one or the other bounds,
            `links` and `copies` that the core waits for.
        link_seconds: time that collectives are on the links, whether waited for or not; `latency` is what of it their hops
            take, not their bytes.
        collectives: kind -> (times, bytes that a chip sends).
        spots: place in the traced function -> seconds.
        open_loops: costs of one trip of the loops whose trips the data decide, with the trips that were assumed.
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    compute: float = 0.0
    memory: float = 0.0
    links: float = 0.0
    copies: float = 0.0
    link_seconds: float = 0.0
    latency: float = 0.0
    collectives: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    spots: dict[str, float] = dataclasses.field(default_factory=dict)
    open_loops: list[tuple[int, Cost]] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.compute + self.memory + self.links + self.copies

    def add(self, other: Cost, times: float = 1.0) -> None:
        """Adds the cost of something that runs so many times."""
        for name in ("flops", "hbm_bytes", "compute", "memory", "links", "copies", "link_seconds", "latency"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for kind, pair in other.collectives.items():
            count, sent = self.collectives.get(kind, (0, 0))
            self.collectives[kind] = count + times * pair[0], sent + times * pair[1]
        for place, seconds in other.spots.items():
            self.spots[place] = self.spots.get(place, 0.0) + times * seconds
        self.open_loops += other.open_loops


class Network:
    """How fast groups of devices exchange bytes.

    Args:
        chip: what they are.
        devices: in the program's order; TPUs have coordinates.
    """

    def __init__(self, chip: Chip, devices):
        self.chip, devices = chip, list(devices)
        coords = [getattr(device, "coords", None) for device in devices]
        self.coords = None if None in coords else np.array(coords)
        self.slices = np.array([getattr(device, "slice_index", None) or 0 for device in devices])
        self.sides = [] if self.coords is None else (self.coords.max(0) + 1).tolist()

    def bandwidth(self, group, one_ring: bool = False) -> float:
        """Bytes/s that each of a group receives in an all-gather over all dimensions of the torus that the group spans.

        Args:
            group: numbers of the devices.
            one_ring: the group is strung on one ring, which takes two links of a chip, in whatever dimensions it lies.
        """
        if len(set(self.slices[group])) > 1:
            return self.chip.network_bandwidth
        if self.coords is None:
            return self.chip.link_bandwidth * self.chip.links
        return min(self._all_dimensions(self.coords[group]), 2 * self.chip.link_bandwidth if one_ring else math.inf)

    def _all_dimensions(self, coords: np.ndarray) -> float:
        spans = [len(set(column)) > 1 for column in coords.T]
        return self.chip.link_bandwidth * sum(
            1 + self._ring(side) for side, span in zip(self.sides, spans, strict=True) if span
        )

    def _ring(self, side: int) -> bool:
        return self.chip.wraps > 0 and side % self.chip.wraps == 0

    def latency(self, group, one_ring: bool = False) -> float:
        """Seconds until something of each of a group can be with every other of it.

        Args:
            group: numbers of the devices.
            one_ring: see `bandwidth`; the longest way is then half of the ring.
        """
        if len(set(self.slices[group])) > 1:
            return self.chip.network_seconds
        if self.coords is None:
            return self.chip.hop_seconds * (len(group) > 1)
        return self.chip.hop_seconds * (len(group) // 2 if one_ring else self._longest_way(self.coords[group]))

    def _longest_way(self, coords: np.ndarray) -> int:
        """Hops between the two of some chips that are farthest apart in each dimension."""
        ways = np.abs(self._offsets(coords[:, None], coords))
        return int(ways.max((0, 1)).sum())

    def _offsets(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Hops from source to target along each dimension, the shorter way round where it is a ring."""
        sides = np.array(self.sides)
        rings = np.array([self._ring(side) for side in self.sides])
        offsets = target - source
        return np.where(rings, (offsets + sides // 2) % sides - sides // 2, offsets)

    def permute_latency(self, pairs) -> float:
        """Seconds of a permutation's longest path."""
        if any(self.slices[source] != self.slices[target] for source, target in pairs):
            return self.chip.network_seconds
        if self.coords is None:
            return self.chip.hop_seconds
        ways = [np.abs(self._offsets(self.coords[source], self.coords[target])).sum() for source, target in pairs]
        return self.chip.hop_seconds * int(max(ways, default=0))

    def permute_load(self, pairs) -> float:
        """Messages over the busiest link in one direction, each sent along one dimension after the other."""
        if self.coords is None:
            return 1.0
        loads: dict[tuple, int] = defaultdict(int)
        for source, target in pairs:
            if self.slices[source] != self.slices[target]:
                return self.chip.link_bandwidth / self.chip.network_bandwidth
            place = self.coords[source].copy()
            offsets = self._offsets(place, self.coords[target])
            for axis, (side, distance) in enumerate(zip(self.sides, offsets.tolist(), strict=True)):
                for _ in range(abs(distance)):
                    loads[(*place, axis, distance > 0)] += 1
                    place[axis] = (place[axis] + (1 if distance > 0 else -1)) % side
        return max(loads.values(), default=1)


def groups(attributes: str, devices: int) -> list[list[int]]:
    """The groups of devices of a collective, of its first form that is printed: lists, iota or named mesh axes."""
    listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes)
    if listed:
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        ids = np.arange(devices).reshape(_integers(iota[3])).transpose(_integers(iota[4]) if iota[4] else None)
        return ids.reshape(int(iota[1]), int(iota[2])).tolist()
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}", attributes
    )
    if named:
        axes = re.findall(r"'(\w+)'=(\d+)", named[1])
        chosen, names = re.findall(r"'(\w+)'", named[4]), [name for name, _ in axes]
        ids = np.arange(devices)
        if named[2]:
            ids = ids.reshape(_integers(named[2])).transpose(_integers(named[3]) if named[3] else None)
        ids = ids.reshape([int(size) for _, size in axes])
        rest = [k for k, name in enumerate(names) if name not in chosen]
        ids = ids.transpose([*rest, *(names.index(name) for name in chosen)])
        return ids.reshape(-1, int(np.prod([int(size) for name, size in axes if name in chosen]))).tolist()
    return [list(range(devices))]


def _integers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _channel(collective: Instruction) -> str:
    found = re.search(r"channel_id=(\d+)", collective.attributes)
    return f"channel {found[1]}" if found else collective.name


def _scattered(inside: Computation, collective: Instruction) -> bool:
    """Whether a fusion takes only slices of its all-reduce: this is how TPUs print a reduce-scatter."""

    def sliced(user: Instruction) -> bool:
        if user.opcode in ("get-tuple-element", "bitcast"):
            return bool(inside.users[user.name]) and all(map(sliced, inside.users[user.name]))
        return user.opcode == "dynamic-slice"

    users = inside.users[collective.name]
    return bool(users) and all(map(sliced, users))


def _one_ring(*instructions: Instruction) -> bool:
    """Whether the compiler's note on how it does a collective says that it strings the group on one ring."""
    notes = "".join(i.attributes.partition('"collective_algorithm_config"')[2] for i in instructions)
    return bool(re.search(r'"emitter":"1D|"strategy":"(UniDirection1D|Strategy)Ring', notes))


def _started(module: Module) -> set[str]:
    """Channels of the collectives that fusions start, go on with and end."""
    starts = (c for c in module.computations.values() if any(i.target == "AsyncCollectiveStart" for i in c.values()))
    return {_channel(i) for c in starts for i in c.values() if i.opcode in COLLECTIVES}


class Player:
    """Plays a program.

    Args:
        module: the program.
        network: how fast its devices exchange bytes.
        share: number of a loop's trips -> share of them in which conditionals in its body take their last branch; elsewhere they
            take their first one.
        open_trips: trips of loops whose trips the data decide.
        cycles: whether the compiler's counts of cycles take part; without them it is a plain roofline.
    """

    def __init__(
        self,
        module: Module,
        network: Network,
        share: dict[int, float] | None = None,
        open_trips: int = 1,
        cycles: bool = True,
    ):
        self.module, self.network, self.chip = module, network, network.chip
        self.cycles = cycles and self.chip.clock > 0
        self.share, self.open_trips = share or {}, open_trips
        self.started = _started(module)
        self._played: dict[tuple[str, float], Cost] = {}

    def play(self, name: str | None = None, last_branch: float = 0.0) -> Cost:
        """The cost of a computation, by default of the program."""
        name = name or self.module.entry
        key = (name, last_branch)
        if key not in self._played:
            self._played[key] = _Run(self, self.module.computations[name], last_branch).cost
        return self._played[key]


class _Run:
    """One computation on the three clocks."""

    def __init__(self, player: Player, where: Computation, last_branch: float):
        self.player, self.where, self.last_branch = player, where, last_branch
        self.cost, self.now, self.memory_free = Cost(), 0.0, 0.0
        self.link_free: dict[str, float] = defaultdict(float)
        self.ends: dict[str, float] = {}  # of what runs beside the core
        for instruction in where.values():
            self._step(instruction)
        for end in self.ends.values():  # nothing outlives its computation
            self._wait(end, "links", "")

    def _step(self, i: Instruction) -> None:
        player = self.player
        collective = next((kind for kind in COLLECTIVES if i.opcode in (kind, f"{kind}-start")), None)
        if i.opcode == "while":
            self._loop(i)
        elif i.opcode == "conditional":
            self._branches(i)
        elif i.opcode == "call" and not (i.called("to_apply") or "").startswith("parallel_"):
            self._include(player.play(i.called("to_apply"), self.last_branch))
        elif collective:
            self._exchange(i, i, collective, beside=i.opcode.endswith("-start"))
        elif i.opcode in ("copy-start", "slice-start", "dynamic-slice-start"):
            self._copy(i)
        elif i.opcode.endswith("-done"):
            kind = "copies" if i.opcode in ("copy-done", "slice-done", "dynamic-slice-done") else "links"
            self._wait(self.ends.pop(i.operands[0], 0.0), kind, i.op_name)
        elif i.opcode in ("fusion", "async-start") and (collective_inside := self._collective_inside(i)):
            self._fused_exchange(i, collective_inside)
        elif i.opcode not in FREE:
            self._compute(i)

    def _include(self, cost: Cost, times: float = 1.0) -> None:
        self.cost.add(cost, times)
        self.now += times * cost.seconds

    def _loop(self, i: Instruction) -> None:
        player = self.player
        trips = trip_count(player.module, self.where, i)
        body = player.play(i.called("body"), 0.0 if trips is None else player.share.get(trips, 0.0))
        if trips is None:
            trips = player.open_trips
            self.cost.open_loops.append((trips, body))
        self._include(body, trips)

    def _branches(self, i: Instruction) -> None:
        names = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
        two = [i.called("false_computation"), i.called("true_computation")]
        branches = re.findall(r"%?([\w.\-]+)", names[1]) if names else two
        costs = [self.player.play(name, self.last_branch) for name in branches]
        self._include(costs[0], 1.0 - self.last_branch)
        self._include(costs[-1], self.last_branch)

    def _compute(self, i: Instruction) -> None:
        work = flops(self.player.module, self.where, i)
        moved = traffic(self.player.module, self.where, i)
        chip = self.player.chip
        compute, memory = work / chip.peak_flops, moved / chip.hbm_bandwidth
        cycles = re.search(r'"estimated_cycles":"(\d+)"', i.attributes) if self.player.cycles else None
        if cycles:
            compute = max(compute, int(cycles[1]) / chip.clock)
        self.cost.flops += work
        self.cost.hbm_bytes += moved
        end = self.now + compute
        if moved:
            self.memory_free = max(self.memory_free, self.now) + memory
        if moved and self.memory_free > end:
            self._wait(self.memory_free, "memory", i.op_name)
        else:
            self._wait(end, "compute", i.op_name)

    def _copy(self, i: Instruction) -> None:
        """Moves data from or into main memory, beside the core."""
        source = self.where.get(i.operands[0])
        moved = min((a.bytes for a in i.arrays[:2]), default=0.0)
        ends = i.arrays[:1] + source.arrays[:1] if source else i.arrays[:1]
        touched = moved * sum(a.space == 0 for a in ends)
        self.cost.hbm_bytes += touched
        self.memory_free = max(self.memory_free, self.now) + touched / self.player.chip.hbm_bandwidth
        self.ends[i.name] = self.memory_free

    def _collective_inside(self, i: Instruction) -> Instruction | None:
        inside = self.player.module.computations.get(i.called() or "", Computation())
        return next((each for each in inside.values() if each.opcode in COLLECTIVES), None)

    def _fused_exchange(self, i: Instruction, collective: Instruction) -> None:
        """A collective inside a fusion: TPUs start it in one, go on with it in others that compute, and end it in another."""
        inside = self.player.module.named(i)
        channel = _channel(collective)
        targets = {each.target for each in inside.values()}
        if "AsyncCollectiveDone" in targets:
            self._wait(self.ends.pop(channel, 0.0), "links", collective.op_name)
        elif "AsyncCollectiveStart" in targets or i.opcode == "async-start":
            self._exchange(i, collective, collective.opcode, beside=True, inside=inside)
            if "AsyncCollectiveStart" in targets:
                self.ends[channel] = self.ends.pop(i.name)
        elif channel in self.player.started:
            self._compute(i)
        else:  # as a whole beside the fusion's own work
            self._exchange(i, collective, collective.opcode, beside=True, inside=inside)
            self._compute(i)
            self._wait(self.ends.pop(i.name), "links", collective.op_name)

    def _exchange(self, i: Instruction, collective: Instruction, kind: str, beside: bool, inside=None) -> None:
        """A collective on the links; `i` is where it runs, `collective` says what."""
        operands = [(inside or self.where).get(name) for name in collective.operands]
        given = sum(a.bytes for o in operands if o for a in o.arrays)
        network, devices = self.player.network, len(self.player.network.slices)
        link = "groups"
        if kind == "collective-permute":
            pairs = [
                tuple(map(int, p))
                for p in re.findall(r"\{(\d+),(\d+)\}", collective.attributes.split("channel", 1)[-1])
            ]
            sent, seconds = given, given * network.permute_load(tuple(pairs)) / self.player.chip.link_bandwidth
            latency = network.permute_latency(pairs)
            link = str(pairs)  # rings in opposite directions take different links
        else:
            if kind == "all-reduce" and inside and _scattered(inside, collective):
                kind = "reduce-scatter"
            group = groups(collective.attributes, devices)[0]
            whole = given * len(group) if kind == "all-gather" else given
            sent = whole * (len(group) - 1) / len(group) * (2 if kind == "all-reduce" else 1)
            one_ring = _one_ring(i, collective)
            seconds = sent / network.bandwidth(group, one_ring) if len(group) > 1 else 0.0
            latency = network.latency(group, one_ring) * (2 if kind == "all-reduce" else 1)
        times, so_far = self.cost.collectives.get(kind, (0, 0))
        self.cost.collectives[kind] = (times + 1, so_far + sent)
        self.cost.link_seconds += seconds + latency
        self.cost.latency += latency
        self.link_free[link] = max(self.link_free[link], self.now) + seconds + latency
        if beside:
            self.ends[i.name] = self.link_free[link]
        else:
            self._wait(self.link_free[link], "links", collective.op_name)

    def _wait(self, end: float, kind: str, place: str) -> None:
        """The core's clock goes on to `end`, if that is later."""
        seconds = max(0.0, end - self.now)
        setattr(self.cost, kind, getattr(self.cost, kind) + seconds)
        if seconds:
            spot = f"{kind}: {place}"
            self.cost.spots[spot] = self.cost.spots.get(spot, 0.0) + seconds
        self.now += seconds
