"""Kernels and bytes of programs written by hand."""

import math

import pytest

from resnet_jax.aot import hlo

FUSED = """
%add (a: f32[100,8], b: f32[8]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %broadcast = f32[100,8]{1,0} broadcast(%b), dimensions={1}
  ROOT %sum = f32[100,8]{1,0} add(%a, %broadcast)
}
"""
ADD = '%x = f32[100,8]{1,0} fusion(%p, %q), kind=kLoop, calls=%add, metadata={op_name="jit(step)/add"}'
INPUTS = '%p = f32[100,8]{1,0} parameter(0)\n  %q = f32[8]{0} parameter(1)'
BYTES = 4 * (800 + 8 + 800)  # of ADD


def program(body, computations=FUSED, inputs=INPUTS):
    """HLO whose entry computation has these instructions."""
    lines = '\n  '.join(line.strip() for line in f'{inputs}\n{body}'.strip().splitlines())
    return (
        f'HloModule m, is_scheduled=true\n{computations}\nENTRY %main (p: f32[100,8]) -> f32[100,8] {{\n  {lines}\n}}\n'
    )


def only(text):
    (kernel,) = hlo.kernels_of(text)
    return kernel


def moved(text):
    return sum(each.times * each.bytes for each in hlo.kernels_of(text))


@pytest.mark.parametrize(
    ('types', 'expected'),
    [
        ('f32[2,3]{1,0}', 24),
        ('(bf16[4]{0}, pred[5]{0}, u8[0]{0})', 13),
        ('f32[]', 4),
        ('s4[3]{0}', 2),  # two in a byte
        ('f8e4m3fn[7]{0}', 7),
        ('c64[2]{0}', 16),
        ('token[]', 0),
    ],
)
def test_bytes_of_types(types, expected):
    assert hlo.bytes_of(types) == expected


def test_a_fusion_reads_its_operands_and_writes_its_result():
    kernel = only(program(ADD))
    assert (kernel.name, kernel.kind, kernel.operation, kernel.times) == ('x', 'fusion', 'jit(step)/add', 1)
    assert (kernel.read, kernel.written, kernel.flops, kernel.bits) == (4 * 808, 3200, 0, 32)
    assert kernel.bytes == BYTES


def test_what_starts_no_kernel_moves_nothing():
    free = """
      %b = f32[800]{0} bitcast(%p)
      %t = (f32[800]{0}, f32[8]{0}) tuple(%b, %q)
      %g = f32[800]{0} get-tuple-element(%t), index=0
      %c = f32[1000]{0} constant({...})
    """
    assert hlo.kernels_of(program(free)) == []


@pytest.mark.parametrize(
    ('use', 'read'),
    [
        ('%s = f32[10,8]{1,0} slice(%a), slice={[0:10], [0:8]}', 320),
        ('%s = f32[10,8]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={10,8}', 320 + 4),
        ('%s = f32[10,8]{1,0} gather(%a, %i), offset_dims={1}', 320 + 4),
        ('%c = f32[800]{0} bitcast(%a)\n  %s = f32[80]{0} slice(%c), slice={[0:80]}', 320),
        ('%s = f32[100,8]{1,0} negate(%a)', 3200),
        # Two slices of all of it are not more than all of it.
        (
            '%u = f32[60,8]{1,0} slice(%a), slice={[0:60], [0:8]}\n'
            '  %v = f32[60,8]{1,0} slice(%a), slice={[40:100], [0:8]}\n'
            '  %s = f32[60,8]{1,0} add(%u, %v)',
            3200,
        ),
        ('%s = f32[] constant(0)', 0),
    ],
    ids=['slice', 'dynamic slice', 'gather', 'bitcast', 'whole', 'two slices', 'unused'],
)
def test_a_fusion_reads_only_what_it_slices(use, read):
    fused = '%f (a: f32[100,8], i: s32[]) -> f32[10,8] {\n  %a = f32[100,8] parameter(0)\n  %i = s32[] parameter(1)\n'
    fused += f'  {use}\n  ROOT %r = f32[10,8]{{1,0}} negate(%s)\n}}\n'
    inputs = '%p = f32[100,8]{1,0} parameter(0)\n%i = s32[] parameter(1)'
    kernel = only(program('%x = f32[10,8]{1,0} fusion(%p, %i), kind=kLoop, calls=%f', fused, inputs))
    assert (kernel.read, kernel.written) == (read, 320)


@pytest.mark.parametrize('root', ['%u', '%b', '%t'])
def test_an_update_in_place_moves_only_the_update(root):
    """Also as an element of a tuple, and behind a bitcast."""
    fused = """
%f (a: f32[100,8], v: f32[1,8], i: s32[]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %v = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %u = f32[100,8]{1,0} dynamic-update-slice(%a, %v, %i, %i)
  %b = f32[800]{0} bitcast(%u)
  %t = (f32[100,8]{1,0}) tuple(%u)
}
"""
    fused = fused.replace(f'  {root} =', f'  ROOT {root} =')
    inputs = '%p = f32[100,8]{1,0} parameter(0)\n%v = f32[1,8]{1,0} parameter(1)\n%i = s32[] parameter(2)'
    kernel = only(program('%x = f32[100,8]{1,0} fusion(%p, %v, %i), kind=kLoop, calls=%f', fused, inputs))
    assert (kernel.read, kernel.written) == (32 + 4, 32)


def test_instructions_outside_of_fusions_count_alike():
    inputs = '%p = f32[100,8]{1,0} parameter(0)\n%v = f32[1,8]{1,0} parameter(1)\n%i = s32[] parameter(2)'
    assert moved(program('%x = f32[100,8]{0,1} copy(%p)', inputs=inputs)) == 6400
    update = '%x = f32[100,8]{1,0} dynamic-update-slice(%p, %v, %i, %i)'
    assert moved(program(update, inputs=inputs)) == 32 + 2 * 4 + 32
    assert moved(program('%x = f32[1,8]{1,0} dynamic-slice(%p, %i, %i)', inputs=inputs)) == 32 + 2 * 4 + 32
    copy = '%s = (f32[100,8]{1,0}, f32[100,8]{1,0}, u32[]) copy-start(%p)\n%d = f32[100,8]{1,0} copy-done(%s)'
    assert moved(program(copy, inputs=inputs)) == 3200 + 3200 + 4


LOOP = (
    FUSED
    + f"""
%body (arg: (f32[100,8], f32[8])) -> (f32[100,8], f32[8]) {{
  %arg = (f32[100,8]{{1,0}}, f32[8]{{0}}) parameter(0)
  %p = f32[100,8]{{1,0}} get-tuple-element(%arg), index=0
  %q = f32[8]{{0}} get-tuple-element(%arg), index=1
  {ADD}
  ROOT %result = (f32[100,8]{{1,0}}, f32[8]{{0}}) tuple(%x, %q)
}}

%condition (arg: (f32[100,8], f32[8])) -> pred[] {{
  %arg = (f32[100,8]{{1,0}}, f32[8]{{0}}) parameter(0)
  ROOT %go = pred[] constant(true)
}}
"""
)
WHILE = '%t = (f32[100,8]{1,0}, f32[8]{0}) tuple(%p, %q)\n%w = (f32[100,8]{1,0}, f32[8]{0}) '
WHILE += 'while(%t), condition=%condition, body=%body'


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    known = WHILE + ', backend_config={"known_trip_count":{"n":"12"},"known_init_step":{"init":"0"}}'
    assert only(program(known, LOOP)).times == 12
    assert only(program(WHILE, LOOP)).times == 1
    totals = hlo.totals_of(hlo.kernels_of(program(known, LOOP)))
    assert totals == {'fusion': {'count': 12, 'bytes': 12 * BYTES}}


def test_loops_multiply():
    outer = (
        LOOP
        + """
%outer (arg: (f32[100,8], f32[8])) -> (f32[100,8], f32[8]) {
  %arg = (f32[100,8]{1,0}, f32[8]{0}) parameter(0)
  ROOT %w = (f32[100,8], f32[8]) while(%arg), condition=%condition, body=%body, x={"known_trip_count":{"n":"12"}}
}
"""
    )
    twice = WHILE.replace('body=%body', 'body=%outer, backend_config={"known_trip_count":{"n":"5"}}')
    assert only(program(twice, outer)).times == 60


CALLED = FUSED + f'\n%part (p: f32[100,8], q: f32[8]) -> f32[100,8] {{\n  {INPUTS}\n  ROOT {ADD}\n}}\n'


@pytest.mark.parametrize(
    'call',
    [
        '%c = f32[100,8]{1,0} call(%p, %q), to_apply=%part',
        '%c = ((f32[100,8]{1,0}, f32[8]{0}), f32[100,8]{1,0}, u32[]) async-start(%p, %q), calls=%part\n'
        '%d = f32[100,8]{1,0} async-done(%c)',
    ],
)
def test_called_computations_are_followed(call):
    assert moved(program(call, CALLED)) == BYTES


@pytest.mark.parametrize(
    'form', ['branch_computations={%nothing, %part}', 'true_computation=%part, false_computation=%nothing']
)
def test_of_a_conditional_the_larger_branch_counts(form):
    nothing = '\n%nothing (p: f32[100,8], q: f32[8]) -> f32[100,8] {\n  ROOT %p = f32[100,8]{1,0} parameter(0)\n}\n'
    given = f'%i = s32[] constant(1)\n%c = f32[100,8]{{1,0}} conditional(%i, %p, %q), {form}'
    assert moved(program(given, CALLED + nothing)) == BYTES


def convolution(target, result, operands, labels='b01f_o01i->b01f', operation='jit(step)/jvp(ResNet)/conv'):
    return (
        f'%c = ({result}, u8[4096]{{0}}) custom-call({operands}), window={{size=3x3 pad=1_1x1_1}}, '
        f'dim_labels={labels}, custom_call_target="{target}", metadata={{op_name="{operation}"}}'
    )


MAPS = """
%x = bf16[2,6,6,8]{3,2,1,0} parameter(0)
%dy = bf16[2,6,6,16]{3,2,1,0} parameter(1)
%k = bf16[16,3,3,8]{3,2,1,0} parameter(2)
%bias = f32[16]{0} parameter(3)
"""
X, DY, K = 2 * 2 * 36 * 8, 2 * 2 * 36 * 16, 2 * 16 * 9 * 8  # bytes
FLOPS = 2 * (2 * 36 * 16) * (9 * 8)


@pytest.mark.parametrize(
    ('target', 'result', 'operands', 'read', 'written'),
    [
        ('__cudnn$convForward', 'bf16[2,6,6,16]{3,2,1,0}', '%x, %k', X + K, DY),
        ('__cudnn$convBiasActivationForward', 'bf16[2,6,6,16]{3,2,1,0}', '%x, %k, %bias, %dy', X + K + 64 + DY, DY),
        ('__cudnn$convBackwardInput', 'bf16[2,6,6,8]{3,2,1,0}', '%dy, %k', DY + K, X),
        ('__cudnn$convBackwardFilter', 'bf16[16,3,3,8]{3,2,1,0}', '%x, %dy', X + DY, K),
    ],
)
def test_convolutions_and_their_scratch_memory(target, result, operands, read, written):
    kernel = only(program(convolution(target, result, operands), '', MAPS))
    assert (kernel.kind, kernel.read, kernel.written) == ('convolution', read, written)
    assert (kernel.flops, kernel.bits) == (FLOPS, 16)


def test_a_grouped_convolution_has_the_input_channels_of_a_group():
    inputs = MAPS.replace('%k = bf16[16,3,3,8]', '%k = bf16[3,3,2,16]')
    labels = 'b01f_01io->b01f'
    kernel = only(program(convolution('__cudnn$convForward', 'bf16[2,6,6,16]', '%x, %k', labels), '', inputs))
    assert kernel.flops == FLOPS // 4


def test_a_fused_convolution_is_a_convolution():
    fused = """
%f (x: bf16[2,6,6,8], k: bf16[16,3,3,8]) -> bf16[2,6,6,16] {
  %x = bf16[2,6,6,8]{3,2,1,0} parameter(0)
  %k = bf16[16,3,3,8]{3,2,1,0} parameter(1)
  %c = bf16[2,6,6,16]{3,2,1,0} convolution(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f
  ROOT %r = bf16[2,6,6,16]{3,2,1,0} negate(%c)
}
"""
    kernel = only(program('%y = bf16[2,6,6,16]{3,2,1,0} fusion(%x, %k), kind=kCustom, calls=%f', fused, MAPS))
    assert (kernel.kind, kernel.flops, kernel.bytes) == ('convolution', FLOPS, X + K + DY)


MATRICES = '%a = bf16[5,4,16]{2,1,0} parameter(0)\n%b = bf16[5,16,3]{2,1,0} parameter(1)'
NESTED = """
%inner (a: bf16[5,4,16], b: bf16[5,16,3]) -> f32[5,4,3] {
  %a = bf16[5,4,16]{2,1,0} parameter(0)
  %b = bf16[5,16,3]{2,1,0} parameter(1)
  ROOT %d = f32[5,4,3]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_contracting_dims={1}
}
%outer (a: bf16[5,4,16], b: bf16[5,16,3]) -> f32[5,4,3] {
  %a = bf16[5,4,16]{2,1,0} parameter(0)
  %b = bf16[5,16,3]{2,1,0} parameter(1)
  ROOT %f = f32[5,4,3]{2,1,0} fusion(%a, %b), kind=kCustom, calls=%inner
}
"""


@pytest.mark.parametrize(
    'product',
    [
        '%d = (f32[5,4,3]{2,1,0}, s8[33554432]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", '
        'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"]}}}',
        '%d = f32[5,4,3]{2,1,0} fusion(%a, %b), kind=kCustom, calls=%inner, backend_config={"kind":"__triton_gemm"}',
        '%d = f32[5,4,3]{2,1,0} fusion(%a, %b), kind=kCustom, calls=%outer',
    ],
    ids=['library', 'generated', 'nested'],
)
def test_matrix_products(product):
    kernel = only(program(product, NESTED, MATRICES))
    assert (kernel.kind, kernel.flops, kernel.bits) == ('product', 2 * 5 * 4 * 3 * 16, 16)
    assert (kernel.read, kernel.written) == (2 * 5 * (64 + 48), 4 * 60)


@pytest.mark.parametrize('target', ['__cub$DeviceRadixSort', 'unconventional'])
def test_an_unknown_library_call_is_none_of_these(target):
    call = f'%s = (f32[8]{{0}}, s32[8]{{0}}) custom-call(%q), custom_call_target="{target}"'
    kernel = only(program(call))
    assert (kernel.kind, kernel.read, kernel.written, kernel.flops) == ('other', 32, 64, 0)


def test_passes_count_the_results_of_forward_convolutions():
    forward = convolution('__cudnn$convForward', 'bf16[2,6,6,16]', '%x, %k')
    gradient = 'jit(step)/transpose(jvp(ResNet))/conv'
    backward = convolution('__cudnn$convForward', 'bf16[2,6,6,16]', '%x, %k', operation=gradient).replace('%c', '%d')
    kernels = hlo.kernels_of(program(f'{forward}\n{backward}', '', MAPS))
    assert hlo.passes_of(kernels) == (DY, 2 * (X + K + DY) / DY)
    assert hlo.passes_of([])[0] == 0
    assert math.isnan(hlo.passes_of([])[1])
