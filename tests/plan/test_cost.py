"""Costs of small programs against counts by hand; what only TPUs print comes as text."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoomearth_jax.hardware.chips import Chip, chip
from zoomearth_jax.plan.cost import Network, Player, groups
from zoomearth_jax.plan.hlo import arrays, flops, parse, trip_count

CHIP = Chip("test", 1e9, 2**30, 1e9, 1e8, 4, 1e7, 4)
ONE = Network(CHIP, [SimpleNamespace()])


def torus(*sides):
    coords = np.indices(sides).reshape(len(sides), -1).T
    return Network(CHIP, [SimpleNamespace(coords=list(place)) for place in coords])


def played(function, *args, **options):
    text = jax.jit(function).lower(*args).compile().as_text()
    return Player(parse(text), ONE, **options).play()


def test_a_product_counts_two_flops_a_multiply_add():
    cost = played(jnp.matmul, jnp.ones((32, 48)), jnp.ones((48, 64)))
    assert cost.flops == 2 * 32 * 48 * 64
    assert cost.hbm_bytes == 4 * (32 * 48 + 48 * 64 + 32 * 64)
    assert cost.seconds == pytest.approx(max(cost.flops, cost.hbm_bytes) / 1e9)


def test_loops_count_by_their_trips():
    square = jnp.ones((16, 16))

    def inner(x, _):
        return x @ square + 1, None

    def outer(x, _):
        return jax.lax.scan(inner, x, None, 4)[0] * 2, None

    cost = played(lambda x: jax.lax.scan(outer, x, None, 7)[0], square)
    assert cost.flops == 7 * 4 * 2 * 16**3


def test_a_layer_of_a_stack_counts_as_a_layer():
    stack = jnp.ones((50, 64, 64))
    cost = played(
        lambda x, stack: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0], jnp.ones((1, 64)), stack
    )
    assert stack.nbytes < cost.hbm_bytes < 4 * stack.nbytes  # the whole stack each time would be 50


def test_an_update_in_place_counts_what_it_writes():
    def body(i, cache):
        return jax.lax.dynamic_update_slice(cache, jnp.full((1, 256), i, jnp.float32), (i, 0))

    cost = played(lambda cache: jax.lax.fori_loop(0, 100, body, cache), jnp.zeros((100, 256)))
    assert cost.hbm_bytes < 20 * 100 * 256 * 4


def test_branches_count_by_their_shares():
    def layer(x, last):
        return jax.lax.cond(last, lambda x: x @ x @ x, lambda x: x @ x, x), None

    def run(x, last):
        return jax.lax.scan(layer, x, last)[0]

    args = jnp.ones((16, 16)), jnp.arange(8) % 4 == 3
    product = 2 * 16**3
    assert played(run, *args, share={8: 0.25}).flops == 8 * (0.75 + 0.25 * 2) * product
    assert played(run, *args).flops == 8 * product


def test_loops_without_known_trips_are_told_apart():
    def run(x):
        return jax.lax.while_loop(lambda x: x.sum() < 1e3, lambda x: x @ x, x @ x)

    cost = played(run, jnp.ones((16, 16)), open_trips=5)
    assert cost.flops == 6 * 2 * 16**3
    (trips, body), *rest = cost.open_loops
    assert (trips, body.flops, rest) == (5, 2 * 16**3, [])


TPU = """HloModule jit_f, is_scheduled=true

%body (p: (bf16[64,128], u32[])) -> (bf16[64,128], u32[]) {
  %p = (bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) parameter(0)
  %x = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=0
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %one = u32[]{:T(128)} constant(1)
  %next = u32[]{:T(128)} add(%i, %one)
  %after = u32[]{:T(128)} add(%next, %one)
  %y = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} negate(%x), backend_config={"estimated_cycles":"700"}
  ROOT %out = (bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) tuple(%y, %after)
}

%condition (p.1: (bf16[64,128], u32[])) -> pred[] {
  %p.1 = (bf16[64,128]{1,0}, u32[]{:T(128)}) parameter(0)
  %i.1 = u32[]{:T(128)} get-tuple-element(%p.1), index=1
  %limit = u32[]{:T(128)} constant(8)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

%begin (q: bf16[64,128]) -> (bf16[64,128], bf16[256,128], u32[]) {
  %q = bf16[64,128]{1,0} parameter(0)
  %whole = bf16[256,128]{1,0} all-gather(%q), channel_id=7, replica_groups=mesh['a'=4] {'a'}, dimensions={0}
  ROOT %started = (bf16[64,128]{1,0}, bf16[256,128]{1,0}, u32[]) custom-call(%whole), custom_call_target="AsyncCollectiveStart"
}

%work (r: bf16[64,128], r.1: bf16[256,128]) -> (bf16[64,64], bf16[256,128]) {
  %r = bf16[64,128]{1,0} parameter(0)
  %r.1 = bf16[256,128]{1,0} parameter(1)
  %part = bf16[256,128]{1,0} all-gather(%r), channel_id=7, replica_groups=mesh['a'=4] {'a'}, dimensions={0}
  %product = bf16[64,64]{1,0} convolution(%r, %r), dim_labels=bf_oi->bf
  ROOT %both = (bf16[64,64]{1,0}, bf16[256,128]{1,0}) tuple(%product, %part)
}

%end (s: bf16[256,128]) -> bf16[256,128] {
  %s = bf16[256,128]{1,0} parameter(0)
  %rest = bf16[256,128]{1,0} all-gather(%s), channel_id=7, replica_groups=mesh['a'=4] {'a'}, dimensions={0}
  ROOT %finished = bf16[256,128]{1,0} custom-call(%rest), custom_call_target="AsyncCollectiveDone", metadata={op_name="a
name in two lines"}
}

ENTRY %main (a: bf16[64,128]) -> bf16[256,128] {
  %a = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = u32[]{:T(128)} constant(0)
  %near = (bf16[64,128]{1,0:S(1)}, bf16[64,128]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %gather = (bf16[64,128]{1,0}, bf16[256,128]{1,0}, u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%begin
  %copied = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%near)
  %buffer = bf16[256,128]{1,0} get-tuple-element(%gather), index=1
  %middle = (bf16[64,64]{1,0:S(1)}, bf16[256,128]{1,0}) fusion(%copied, %buffer), kind=kCustom, \
output_to_operand_aliasing={{1}: (1, {})}, calls=%work
  %start = (bf16[64,128]{1,0:S(1)}, u32[]) tuple(%copied, %zero)
  %loop = (bf16[64,128]{1,0:S(1)}, u32[]) while(%start), condition=%condition, body=%body
  %going = bf16[256,128]{1,0} get-tuple-element(%middle), index=1
  ROOT %done = bf16[256,128]{1,0} fusion(%going), kind=kCustom, calls=%end
}
"""


INT8 = """
%tiled (input: s8[6,64,32]) -> s8[6,64,32] {
  %input = s8[6,64,32]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %copy = s8[6,64,32]{2,1,0:T(8,128)(4,1)} copy(%input)
}

%slice (stack: s8[6,64,32], layer: s32[]) -> s8[64,32] {
  %stack = s8[6,64,32]{2,1,0:T(32,128)(4,1)} parameter(0)
  %same = s8[6,64,32]{2,1,0:T(8,128)(4,1)} fusion(%stack), kind=kLoop, ALIAS calls=%tiled
  %layer = s32[]{:T(128)} parameter(1)
  %one = s8[1,64,32]{2,1,0:T(8,128)(4,1)} dynamic-slice(%same, %layer), dynamic_slice_sizes={1,64,32}
  ROOT %kernel = s8[64,32]{1,0:T(8,128)(4,1)} bitcast(%one)
}

ENTRY %main (stack.1: s8[6,64,32], layer.1: s32[]) -> s8[64,32] {
  %stack.1 = s8[6,64,32]{2,1,0:T(32,128)(4,1)} parameter(0)
  %layer.1 = s32[]{:T(128)S(6)} parameter(1)
  ROOT %fusion = s8[64,32]{1,0:S(1)} fusion(%stack.1, %layer.1), kind=kLoop, calls=%slice
}
"""


def test_a_slice_of_int8_layers_in_another_tiling_reads_one_layer():
    def read(alias):
        return Player(parse(INT8.replace("ALIAS", alias)), torus(4)).play().hbm_bytes

    assert read("output_to_operand_aliasing={{}: (0, {})},") == 64 * 32
    assert read("") == 6 * 64 * 32  # a copy into other memory


def test_tpu_text():
    module = parse(TPU)
    main = module.computations[module.entry]
    assert trip_count(module, main, main["loop"]) == 4  # XLA unrolled it by two
    cost = Player(module, torus(4)).play()
    assert cost.flops == 2 * 64 * 64 * 128
    assert cost.collectives == {"all-gather": (1, 3 * 64 * 128 * 2)}  # three fusions, one collective
    counters = 4 * 2 * 3 * 4
    assert cost.hbm_bytes == 64 * 128 * 2 + counters  # the copy; the rest is in the core's memory or the collective's
    assert cost.compute == pytest.approx(cost.flops / 1e9)
    assert cost.links == 0  # over long before it is waited for
    slow = torus(4)
    slow.chip = CHIP._replace(link_bandwidth=1e6)
    assert Player(module, slow).play().seconds == pytest.approx(3 * 64 * 128 * 2 / 2e6)


SCATTERED = """HloModule jit_f, is_scheduled=true

%all-reduce-scatter (x: bf16[64,256], y: bf16[64,32]) -> (bf16[16,256], bf16[16,32]) {
  %x = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  %y = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %sums = (bf16[64,256]{1,0}, bf16[64,32]{1,0}) all-reduce(%x, %y), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
  %id = u32[] partition-id()
  %zero = u32[] constant(0)
  %sum.x = bf16[64,256]{1,0} get-tuple-element(%sums), index=0
  %part.x = bf16[16,256]{1,0} dynamic-slice(%sum.x, %id, %zero), dynamic_slice_sizes={16,256}
  %sum.y = bf16[64,32]{1,0} get-tuple-element(%sums), index=1
  %part.y = bf16[16,32]{1,0} dynamic-slice(%sum.y, %id, %zero), dynamic_slice_sizes={16,32}
  ROOT %parts = (bf16[16,256]{1,0}, bf16[16,32]{1,0}) tuple(%part.x, %part.y)
}

ENTRY %main (a: bf16[64,256], b: bf16[64,32]) -> (bf16[16,256], bf16[16,32]) {
  %a = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %out = (bf16[16,256]{1,0}, bf16[16,32]{1,0}) fusion(%a, %b), kind=kCustom, calls=%all-reduce-scatter, \
backend_config={"collective_algorithm_config":{"emitter":"AllReduceScatterFusion","strategy":"StrategyRing","debug":""}}
}
"""


def test_all_reduces_of_which_a_slice_is_kept_are_reduce_scatters():
    square = torus(2, 4)  # on all of its dimensions three links' worth, on one ring two
    slow = square.chip = CHIP._replace(link_bandwidth=1e5)
    square.coords, square.slices = square.coords[[0, 1, 4, 5]], square.slices[:4]
    sent = 64 * (256 + 32) * 2 * 3 / 4
    cost = Player(parse(SCATTERED), square).play()
    assert cost.collectives == {"reduce-scatter": (1, sent)}
    assert cost.link_seconds == pytest.approx(sent / (2 * slow.link_bandwidth))
    everywhere = SCATTERED.replace("StrategyRing", "StrategyND")
    assert Player(parse(everywhere), square).play().link_seconds == pytest.approx(sent / (3 * slow.link_bandwidth))
    whole = SCATTERED.replace("tuple(%part.x, %part.y)", "tuple(%part.x, %sum.y)")
    assert Player(parse(whole), square).play().collectives == {"all-reduce": (1, 2 * sent)}


def test_cycles_of_the_compiler():
    clocked = torus(4)
    clocked.chip = CHIP._replace(clock=1e6)
    with_cycles, without = (Player(parse(TPU), clocked, cycles=cycles).play() for cycles in (True, False))
    assert with_cycles.compute - without.compute == pytest.approx(4 * 700 / 1e6)


def test_products_batched_by_dilation():
    text = """ENTRY %main (a: bf16[8,32,16], b: bf16[8,16,64]) -> bf16[8,32,64] {
  %a = bf16[8,32,16]{2,1,0} parameter(0)
  %b = bf16[8,16,64]{2,1,0} parameter(1)
  ROOT %c = bf16[8,32,64]{2,1,0} convolution(%a, %b), window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}
"""
    module = parse(text)
    main = module.computations["main"]
    assert flops(module, main, main["c"]) == 8 * 2 * 32 * 16 * 64


def test_splash_kernels_count_the_blocks_of_their_mask():
    text = """ENTRY %main (m: s8[1,3,3]) -> bf16[4,16,1536,128] {
  %m = s8[1,3,3]{2,1,0} parameter(0)
  %q = bf16[4,16,1536,128]{3,2,1,0} parameter(1)
  %k = bf16[4,2,1536,128]{3,2,1,0} parameter(2)
  %s = s32[4,1536,128]{2,1,0} parameter(3)
  %t = s32[4,8,1536]{2,1,0} parameter(4)
  %places = s32[1536,128]{1,0} parameter(5)
  %splash_mha_fwd_segmented = (bf16[4,16,1536,128]{3,2,1,0}) custom-call(%m, %m, %q, %k, %k, %s, %t, %places), \
custom_call_target="tpu_custom_call"
  %splash_mha_dkv_segmented = (bf16[4,16,1536,128]{3,2,1,0}) custom-call(%m, %m, %q, %k, %k, %s, %t), \
custom_call_target="tpu_custom_call"
}
"""
    module = parse(text)
    main = module.computations["main"]
    whole = 2 * 4 * 16 * 1536 * 1536 * 128
    assert flops(module, main, main["splash_mha_fwd_segmented"]) == pytest.approx(2 * whole * 6 / 9)
    assert flops(module, main, main["splash_mha_dkv_segmented"]) == 4 * whole


def test_groups_of_collectives():
    assert groups("replica_groups={{0,1},{2,3}}, x={}", 4) == [[0, 1], [2, 3]]
    assert groups("replica_groups=[2,4]<=[4,2]T(1,0)", 8) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert groups("replica_groups=mesh['a'=2,'b'=4] {'a'}", 8) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert groups("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", 8) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert groups("channel_id=1", 3) == [[0, 1, 2]]


def test_bandwidth_follows_the_torus():
    network = torus(2, 4)  # the longer side closes to a ring
    assert network.bandwidth([0, 1, 2, 3]) == 2e8
    assert network.bandwidth([0, 4]) == 1e8
    assert network.bandwidth(list(range(8))) == 3e8
    assert network.permute_load([(0, 1), (1, 2), (2, 3), (3, 0)]) == 1
    assert torus(3).permute_load([(0, 1), (1, 2), (2, 0)]) == 1  # there is no ring, but links work both ways
    assert torus(3).permute_load([(0, 2), (1, 2)]) == 2
    far = Network(CHIP, [SimpleNamespace(coords=[0], slice_index=n) for n in (0, 1)])
    assert far.bandwidth([0, 1]) == CHIP.network_bandwidth
    halves = Network(CHIP, [SimpleNamespace(coords=[n // 2]) for n in range(4)])  # two devices a chip
    assert (halves.bandwidth([0, 1]), halves.bandwidth([0, 2])) == (4e8, 1e8)


def test_latency_follows_the_longest_way():
    """By hand on 2 x 4 chips, device n at (n // 4, n % 4): the side of 4 is a ring, whose farthest chips are 2 hops apart."""
    network = torus(2, 4)
    network.chip = CHIP._replace(hop_seconds=1e-6, network_seconds=1e-3)
    hops = {(0, 1, 2, 3): 2, (0, 4): 1, (0, 1): 1, (0, 3): 1, (0, 2): 2, tuple(range(8)): 3, (5,): 0}
    assert {group: network.latency(list(group)) for group in hops} == {
        g: pytest.approx(n * 1e-6) for g, n in hops.items()
    }
    assert network.latency(list(range(8)), one_ring=True) == pytest.approx(4e-6)
    line = torus(3)  # open: from end to end
    line.chip = network.chip
    assert line.latency([0, 1, 2]) == pytest.approx(2e-6)
    assert network.permute_latency([(0, 1), (0, 7)]) == pytest.approx(2e-6)  # one down, and one round the ring
    far = Network(network.chip, [SimpleNamespace(coords=[0], slice_index=n) for n in (0, 1)])
    assert far.latency([0, 1]) == far.permute_latency([(0, 1)]) == 1e-3
    switched = Network(network.chip, [SimpleNamespace()] * 4)
    assert (switched.latency([0, 1, 2]), switched.latency([1])) == (1e-6, 0.0)


REDUCED = """HloModule jit_f, is_scheduled=true

ENTRY %main (a: f32[1000]) -> f32[1000] {
  %a = f32[1000]{0} parameter(0)
  %sum = f32[1000]{0} all-reduce(%a), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %part = f32[250]{0} reduce-scatter(%sum), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %moved = f32[250]{0} collective-permute(%part), channel_id=3, source_target_pairs={{0,2},{2,0}}
  ROOT %out = f32[1000]{0} all-gather(%moved), channel_id=4, replica_groups={{0,1,2,3}}, dimensions={0}
}
"""


def test_latency_comes_beside_the_bytes():
    """On a closed ring of 4: 2 hops there and 2 back for the all-reduce, 2 for each of the others."""
    free, ring = torus(4), torus(4)
    ring.chip = CHIP._replace(hop_seconds=1e-6)
    without, found = (Player(parse(REDUCED), network).play() for network in (free, ring))
    assert (without.latency, found.latency) == (0.0, pytest.approx(10e-6))
    assert found.link_seconds - without.link_seconds == pytest.approx(10e-6)
    assert found.links - without.links == pytest.approx(10e-6)
    assert found.collectives == without.collectives
    thrice = without
    thrice.add(found, 3)
    assert thrice.latency == pytest.approx(30e-6)


def test_arrays_of_printed_types():
    found = arrays("(bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[], pred[3]{0})")
    assert [(a.dims, a.bytes, a.main_bytes) for a in found] == [((4, 8), 64, 0), ((), 4, 4), ((3,), 3, 3)]


def test_known_chips():
    assert chip("TPU v5 lite").peak_flops == 197e12
    assert chip("cpu") is None


@pytest.fixture(scope="module")
def on_eight_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("collectives_on_mesh.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["gathered", "summed", "in_a_loop"])
def test_sharded_products(on_eight_devices, name):
    flops_found, collectives, expected_flops, expected = on_eight_devices[name]
    assert flops_found == expected_flops
    assert collectives == expected
