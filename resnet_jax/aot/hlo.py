"""Kernels of an optimized program for a GPU, with the bytes that they move, read from its HLO text."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

# Kinds of kernels. ``product`` is a matrix product, by a library or generated.
KINDS = ('fusion', 'convolution', 'product', 'other')

# The number of bits follows the letters: f32, bf16, s4, f8e4m3fn; a pred takes a byte.
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)(?:e\d+m\d+\w*)?)\[([\d,]*)\]')
_COMPUTATION = re.compile(r'^(ENTRY )?%([\w.\-]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%([\w.\-]+) = (.*)$')
_NAME = re.compile(r'%([\w.\-]+)')
_OPCODE = re.compile(r'([\w\-]+)\(')

# Instructions that start no kernel and move nothing.
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id'}
# Started operations whose result contains their operands, too.
_WITH_OPERANDS = {'copy-start', 'all-gather-start', 'collective-permute-start'}


def bytes_of(types: str) -> int:
    """Bytes of all arrays in the text of a type, such as ``(f32[2,3]{1,0}, u8[0]{0})``; tokens have none."""
    return sum(math.ceil(_elements(sizes) * int(bits or 8) / 8) for _, bits, sizes in _ARRAY.findall(types))


def _elements(sizes: str) -> int:
    return math.prod(int(size) for size in sizes.split(',') if size)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of HLO.

    Attributes:
      name: unique within its computation.
      type: text of the result's type.
      opcode: such as ``fusion`` or ``custom-call``.
      given: text between the parentheses of the operands; a parameter's index.
      attributes: text behind the operands.
      is_root: whether it is the computation's result.
    """

    name: str
    type: str
    opcode: str
    given: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return _NAME.findall(self.given)

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression in the attributes, or None."""
        match = re.search(pattern, self.attributes)
        return match and match[1]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a program.

    Attributes:
      name: the instruction's name.
      kind: one of ``KINDS``.
      operation: the JAX operation that it comes from, such as ``jit(step)/jvp(ResNet)/stem/conv/…``.
      times: how often it runs.
      read: bytes that one execution reads.
      written: bytes that one execution writes, without scratch memory.
      flops: floating-point operations of one execution, two per multiply-add; 0 for fusions and others.
      bits: size in bits of the elements of the first operand, which determines the speed of a product.
    """

    name: str
    kind: str
    operation: str
    times: int
    read: int
    written: int
    flops: int
    bits: int

    @property
    def bytes(self) -> int:
        """Bytes that one execution reads and writes."""
        return self.read + self.written


def kernels_of(text: str) -> list[Kernel]:
    """Lists the kernels of a compiled program for a GPU, with the bytes that each reads and writes.

    A kernel reads each operand once, and of an operand that it only slices, the slices; it writes its result, and of an
    operand that it updates in place, the update. Caches are ignored. The body of a loop counts as often as it runs if
    the compiler knows the number, otherwise once; of the branches of a conditional, the one that moves most counts.

    Args:
      text: HLO of a compiled program (``compiled.as_text()``).
    """
    return list(_Program(text).kernels())


def passes_of(kernels: list[Kernel]) -> tuple[int, float]:
    """The bytes of one pass over the results of all forward convolutions, and the bytes of all kernels in passes.

    The unit makes networks, batch sizes and dtypes comparable: batch normalization that reads its input once and writes
    its output takes two passes.
    """
    forward = [each for each in kernels if each.kind == 'convolution' and 'transpose(' not in each.operation]
    one = sum(each.times * each.written for each in forward)
    return one, sum(each.times * each.bytes for each in kernels) / one if one else math.nan


def totals_of(kernels: list[Kernel]) -> dict[str, dict[str, int]]:
    """The ``count`` and ``bytes`` of the kernels of each kind that occurs, with repetitions."""
    count: collections.Counter[str] = collections.Counter()
    moved: collections.Counter[str] = collections.Counter()
    for each in kernels:
        count[each.kind] += each.times
        moved[each.kind] += each.times * each.bytes
    return {kind: {'count': count[kind], 'bytes': moved[kind]} for kind in KINDS if count[kind]}


_COLLECTIVE = re.compile(
    r' = (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\('
)


def collectives_of(text: str) -> dict[str, dict[str, int]]:
    """Counts the collective operations in the text of a compiled program.

    Args:
      text: HLO of a compiled program.

    Returns:
      For each kind of collective, such as ``all-reduce``, a dict of its ``count`` and the ``bytes`` of its results on
      one device.
    """
    found: dict[str, dict[str, int]] = {}
    for match in _COLLECTIVE.finditer(text):
        entry = found.setdefault(match[2], {'count': 0, 'bytes': 0})
        entry['count'] += 1
        entry['bytes'] += bytes_of(match[1])
    return found


class _Program:
    """The computations of an HLO module: for each, its instructions by name, in order."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ''
        current: dict[str, Instruction] | None = None
        for line in text.splitlines():
            if current is None:
                head = _COMPUTATION.match(line)
                if head:
                    current = self.computations[head[2]] = {}
                    self.entry = head[2] if head[1] else self.entry
            elif line.startswith('}'):
                current = None
            else:
                match = _INSTRUCTION.match(line)
                if match:
                    current[match[2]] = _instruction(match[2], match[3], match[1] is not None)

    def kernels(self) -> Iterator[Kernel]:
        return self._kernels(self.entry, 1)

    def _kernels(self, name: str, times: int) -> Iterator[Kernel]:
        """The kernels of a computation that runs ``times`` times."""
        computation = self.computations[name]
        for each in computation.values():
            if each.opcode in _FREE or each.opcode.endswith('-done'):
                continue
            if each.opcode == 'while':
                count = each.attribute(r'"?known_trip_count"?\D*(\d+)')
                yield from self._kernels(each.attribute(r'body=%([\w.\-]+)') or '', times * int(count or 1))
            elif each.opcode == 'conditional':
                called = each.attribute(r'branch_computations=\{([^}]*)\}') or each.attributes
                branches = [list(self._kernels(n, times)) for n in _NAME.findall(called) if n in self.computations]
                yield from max(branches, key=lambda branch: sum(one.times * one.bytes for one in branch))
            elif each.opcode in ('call', 'call-start', 'async-start'):
                yield from self._kernels(each.attribute(r'(?:to_apply|calls)=%([\w.\-]+)') or '', times)
            else:
                yield self._kernel(each, computation, times)

    def _kernel(self, each: Instruction, computation: dict[str, Instruction], times: int) -> Kernel:
        operands = [computation[name] for name in each.operands if name in computation]
        fused = self.computations[each.attribute(r'calls=%([\w.\-]+)') or ''] if each.opcode == 'fusion' else None
        sizes = [bytes_of(operand.type) for operand in operands]
        if fused is None:
            uses = [_used(each, number) for number in range(len(operands))]
            read = sum(size if use is None else min(use, size) for size, use in zip(sizes, uses, strict=True))
            written = _written(each, computation)
            if each.opcode in _WITH_OPERANDS:
                written -= sum(sizes)
        else:
            read = sum(min(_read(fused, number, size), size) for number, size in enumerate(sizes))
            written = _written(next(one for one in fused.values() if one.is_root), fused)
        kind, flops = self._work(each, operands)
        bits = _ARRAY.search(operands[0].type) if operands else None
        return Kernel(
            name=each.name,
            kind=kind,
            operation=each.attribute(r'op_name="([^"]*)"') or '',
            times=times,
            read=read,
            written=written,
            flops=flops,
            bits=int(bits[2] or 8) if bits else 0,
        )

    def _work(self, each: Instruction, operands: list[Instruction]) -> tuple[str, int]:
        """Kind and FLOPs of a kernel."""
        if each.opcode == 'fusion':
            work = list(self._fused_work(each.attribute(r'calls=%([\w.\-]+)') or ''))
            return (work[0][0], sum(flops for _, flops in work)) if work else ('fusion', 0)
        if each.opcode != 'custom-call':
            return 'other', 0
        target = each.attribute(r'custom_call_target="([^"]*)"') or ''
        if '$conv' in target:
            return 'convolution', _convolution_flops(each, target, operands)
        if re.search('gemm|cublas|matmul', target):
            contracted = each.attribute(r'"lhs_contracting_dimensions":\[([^\]]*)\]') or ''
            return 'product', _product_flops(each, operands[0], re.findall(r'\d+', contracted))
        return 'other', 0

    def _fused_work(self, name: str) -> Iterator[tuple[str, int]]:
        """Kind and FLOPs of the convolutions and products in a fused computation and in the fusions inside it."""
        computation = self.computations[name]
        for each in computation.values():
            operands = [computation[operand] for operand in each.operands if operand in computation]
            if each.opcode in ('dot', 'scaled-dot'):
                contracted = each.attribute(r'lhs_contracting_dims=\{([^}]*)\}') or ''
                yield 'product', _product_flops(each, operands[0], re.findall(r'\d+', contracted))
            elif each.opcode == 'convolution':
                yield 'convolution', _convolution_flops(each, '', operands)
            elif each.opcode == 'fusion':
                yield from self._fused_work(each.attribute(r'calls=%([\w.\-]+)') or '')


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    """Parses ``TYPE OPCODE(OPERANDS)ATTRIBUTES``; a type may be a tuple."""
    split = _closing(text, 0) + 1 if text.startswith('(') else text.index(' ')
    rest = text[split:].lstrip()
    opcode: Any = _OPCODE.match(rest)
    end = _closing(rest, opcode.end() - 1)
    return Instruction(name, text[:split], opcode[1], rest[opcode.end() : end], rest[end + 1 :], is_root)


def _closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at ``start``."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == '(') - (text[index] == ')')
        if not depth:
            return index
    raise ValueError(f'unbalanced parentheses: {text[:80]}')


def _used(user: Instruction, number: int) -> int | None:
    """Bytes that an instruction needs of its operand; None for all of it."""
    if user.opcode in ('slice', 'dynamic-slice') or (user.opcode == 'gather' and number == 0):
        return bytes_of(user.type) if number == 0 else None
    return 0 if user.opcode == 'dynamic-update-slice' and number == 0 else None


def _read(fused: dict[str, Instruction], number: int, size: int) -> int:
    """Bytes that a fused computation reads of its parameter, which has ``size`` bytes."""
    parameters = (each for each in fused.values() if each.opcode == 'parameter')
    names = {each.name for each in parameters if each.given.strip() == str(number)}
    total = 0
    for user in fused.values():  # operands precede their users
        for place, operand in enumerate(user.operands):
            if operand not in names:
                continue
            if user.opcode == 'bitcast':
                names.add(user.name)
                continue
            use = _used(user, place)
            if use is None:
                return size
            total += use
    return total


def _written(result: Instruction, computation: dict[str, Instruction]) -> int:
    """Bytes that a kernel writes whose result is this instruction."""
    if result.opcode == 'dynamic-update-slice':
        return bytes_of(computation[result.operands[1]].type)
    if result.opcode == 'bitcast' and result.operands[0] in computation:
        return _written(computation[result.operands[0]], computation)
    if result.opcode == 'tuple':
        return sum(_written(computation[name], computation) for name in result.operands)
    if result.opcode == 'custom-call' and result.type.startswith('('):
        return bytes_of(re.sub(r', [us]8\[\d*\](\{0\})?\)$', ')', result.type))  # the last array is scratch memory
    return bytes_of(result.type)


def _convolution_flops(each: Instruction, target: str, operands: list[Instruction]) -> int:
    """FLOPs of a convolution by cuDNN, forward or backward: two per output, tap and input channel of a group."""
    result = each.type
    outputs, kernel = result, operands[1].type
    if 'BackwardInput' in target:
        outputs = operands[0].type
    elif 'BackwardFilter' in target:
        outputs, kernel = operands[1].type, result
    labels = each.attribute(r'dim_labels=\w+_(\w+)->') or ''
    sizes = _ARRAY.findall(kernel)[0][2]
    features = int(sizes.split(',')[labels.index('o')])
    return 2 * _elements(_ARRAY.findall(outputs)[0][2]) * _elements(sizes) // features


def _product_flops(each: Instruction, left: Instruction, contracted: list[str]) -> int:
    """FLOPs of a matrix product: two per element of the result and of the contracted dimensions."""
    sizes = _ARRAY.findall(left.type)[0][2].split(',')
    return 2 * _elements(_ARRAY.findall(each.type)[0][2]) * math.prod(int(sizes[int(axis)]) for axis in contracted)
