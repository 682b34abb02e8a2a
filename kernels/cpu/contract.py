"""Convolutions and linear layers: gather, microkernel, and the epilogue that runs the operation's body."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.build import i64, kernel, sample_size
from intq.kernels.cpu import micro
from intq.kernels.cpu.build import State, copy, parallel, parallel_region, scratch, serial, workspace
from intq.kernels.cpu.dense import dense, products
from intq.kernels.cpu.epilogue import Buffers, Epilogue, sizes_of
from intq.kernels.cpu.gather import pad_frame, pad_image, window, window_rows
from intq.kernels.cpu.lanes import CURVE, TABLE, accumulated, store
from intq.kernels.cpu.plan import Plan, padded_width
from intq.kernels.cpu.runs import Run
from intq.kernels.cpu.weights import Panel, Whole, blocks_of

CACHE_LINE = 64  # bytes
RESIDENT = 2**19  # bytes of A that stay in a core's second cache


def convolve_frames(name: str, plan: Plan, epilogue: Epilogue, shapes: dict[str, tuple], masked: bool) -> tirx.PrimFunc:
    """The kernel (x, [residual], [mask], weight, constants, [curve], pad_value, out) of a convolution over frames."""
    arguments = [(shapes["x"], "uint8")]
    arguments += [(shapes["out"], epilogue.residual)] if epilogue.residual else []
    arguments += [(shapes["x"][:2], "uint8")] if masked else []
    arguments += [(shapes["weight"], "int8"), (shapes["constants"], "int64")]
    arguments += [((CURVE * TABLE,), "int32")] if epilogue.curve else []
    arguments += [((plan.source[2],), "uint8"), (shapes["out"], epilogue.dtype)]
    names, sizes = sizes_of(shapes)

    def body(*rest):
        known, (x, *more) = dict(zip(names, rest, strict=False)), rest[len(names) :]
        residual = more.pop(0) if epilogue.residual else None
        mask = more.pop(0) if masked else None
        weight, constants, *curve, pad_value, out = more
        writer = _Writer(plan, epilogue, Buffers(x, residual, weight, constants, curve[0] if curve else None, out))
        writer.frames(*(i64(known.get(d, d)) for d in sizes), mask, pad_value)

    return kernel(name, arguments, body, names)


def contraction(name: str, plan: Plan, epilogue: Epilogue, shapes: dict[str, tuple]) -> tirx.PrimFunc:
    """The kernel (x, [residual], weight, constants, [curve], [pad_value], out) of a plan.

    ``shapes``: of "x", "out" and "residual" as in the graph, of "weight" and "constants" as packed.
    """
    arguments = [(shapes["x"], "uint8")]
    if epilogue.residual:
        arguments.append((shapes["out"], epilogue.residual))
    arguments += [(shapes["weight"], "int8"), (shapes["constants"], "int64")]
    if epilogue.curve:
        arguments.append(((CURVE * TABLE,), "int32"))
    pads = any(plan.padding)
    if pads:
        arguments.append(((plan.source[2],), "uint8"))
    arguments.append((shapes["out"], epilogue.dtype))

    def body(n, x, *rest):
        rest = list(rest)
        residual = rest.pop(0) if epilogue.residual else None
        weight, constants = rest[:2]
        curve = rest[2] if epilogue.curve else None
        buffers = Buffers(x, residual, weight, constants, curve, rest[-1])
        if plan.mode == "dense":
            dense(plan, epilogue, buffers)
        else:
            _Writer(plan, epilogue, buffers).write(n, rest[-2] if pads else None, sample_size(shapes["x"]))

    return kernel(name, arguments, body)


@dataclass(frozen=True)
class _Memory:
    """What a thread works with: the sums of a tile, and the blocks of weights."""

    sums: object
    weights: Whole | Panel


@dataclass(frozen=True)
class _Writer:
    """The code of one kernel over its buffers."""

    plan: Plan
    epilogue: Epilogue
    buffers: Buffers

    def write(self, n, pad_value, sample: int) -> None:
        plan, tile, x = self.plan, self.plan.tile_rows, self.buffers.x
        h, w, c = plan.source
        image_bytes = h * w * c
        if plan.mode == "direct":
            with self._region() as memory:
                self._product(memory, x, i64(0), n * plan.image_rows, i64(0), i64(0))
        elif plan.mode == "rows":
            self._rows(x.shape[0] // c, sample // c)
        else:
            copied, in_columns = any(plan.padding) or plan.overshoots, plan.mode == "columns"
            padded = scratch(math.prod(plan.padded) * c + plan.copy_width, "uint8") if copied else x
            shared = in_columns and not plan.gathers_by_tile
            panel = scratch(max(plan.image_rows, tile) * plan.pitch, "uint8") if shared else None
            with self._region() as memory, serial(n) as image:
                at = image * image_bytes
                if copied:
                    pad_image(padded, x, image, pad_value, plan.source, plan.padding)
                    at = i64(0)
                if not in_columns:
                    self._product(memory, padded, at, plan.image_rows, image, i64(0), barrier=True)
                    return
                first = image * plan.image_rows
                with serial(plan.groups) as group:
                    if shared:
                        window_rows(panel, padded, at, plan, group)
                        self._product(memory, panel, i64(0), plan.image_rows, first, group, barrier=True)
                    else:
                        self._gathered(memory, padded, at, plan.image_rows, first, group)

    def frames(self, samples, frames, places, mask, pad_value) -> None:
        """Of each sample a padded copy is made, in which the windows of all places lie."""
        plan, (before, _, after, _) = self.plan, self.plan.padding
        rows, outputs = T.Bind(frames + (before + after)), T.Bind(places * plan.output_width)
        # what a tile of more rows than there are reads, and drops
        beyond = (plan.tile_rows * plan.stride[0] + plan.kernel[0] * plan.dilation[0]) * plan.frame + CACHE_LINE
        size, source = rows * plan.frame + beyond, (frames, *plan.source[1:])
        with workspace(size, "uint8") as padded, self._windows(outputs) as product, serial(samples) as sample:
            with parallel(rows, barrier=True) as row:
                place, frame = row * plan.frame, T.Bind(row - before)
                pad_frame(padded, place, self.buffers.x, sample, frame, source, plan.padding, mask, pad_value)
            product(padded, sample * outputs)

    @contextmanager
    def _windows(self, outputs):
        """A region's ``product(padded, first)``: the output rows from ``first`` on, of a padded sample's windows."""
        plan = self.plan
        if plan.mode == "dense":
            with products(plan, self.epilogue, self.buffers, outputs) as product:
                yield lambda padded, first: product(padded, first, barrier=True)
            return

        def product(padded, first) -> None:
            with serial(plan.groups) as group:
                if plan.mode == "columns":
                    self._gathered(memory, padded, i64(0), outputs, first, group)
                else:
                    self._product(memory, padded, group * plan.ci, outputs, first, group, barrier=True)

        with self._region() as memory:
            yield product

    def _rows(self, rows, least: int) -> None:
        """A linear layer's product: its rows, ``least`` of them or more, in place, or copied where a tile has more."""
        plan, tile = self.plan, self.plan.tile_rows
        if plan.k % plan.isa.k_quantum:
            self._copied_rows(rows)
        elif least >= tile:
            self._rows_in_place(rows)
        else:
            with T.If(rows >= tile):
                with T.Then():
                    self._rows_in_place(rows)
                with T.Else():
                    self._copied_rows(rows)

    def _rows_in_place(self, rows) -> None:
        in_place = replace(self, plan=replace(self.plan, mode="direct"))
        with in_place._region() as memory:
            in_place._product(memory, self.buffers.x, i64(0), rows, i64(0), i64(0))

    def _copied_rows(self, rows) -> None:
        plan, tile, c = self.plan, self.plan.tile_rows, self.plan.k
        panel = scratch(tile * plan.pitch, "uint8")
        with self._region() as memory, serial((rows + tile - 1) // tile) as block:
            count = tirx.min(i64(tile), rows - block * tile)
            with parallel(count, barrier=True) as r:
                copy(panel, r * plan.pitch, self.buffers.x, (block * tile + r) * c, c)
            self._product(memory, panel, i64(0), count, block * tile, i64(0), barrier=True)

    def _gathered(self, memory, source, at, rows, first, group) -> None:
        """The product of an image, tile by tile: its windows copied out, then all blocks of columns."""
        plan, tile, ow = self.plan, self.plan.tile_rows, self.plan.output_width
        count, panels = tirx.min(i64(tile), i64(rows)), (rows + tile - 1) // tile
        with workspace(tile * plan.pitch, "uint8") as panel, parallel(panels, barrier=True) as number:
            row = T.Bind(tirx.max(i64(0), tirx.min(number * tile, i64(rows - tile))))
            with serial(tile) as r:
                y, x = T.Bind((row + r) // ow), T.Bind((row + r) % ow)
                window(panel, T.Bind(r * plan.pitch), source, at, plan, group, y, x)
            with serial(len(plan.blocks)) as block:
                in_panel = i64(0) - row * plan.pitch  # its rows count from ``row``
                self._blocks(panel, in_panel, row, count, first, group, block, plan.blocks, memory)

    @contextmanager
    def _region(self):
        """A parallel region with its threads' memory."""
        plan = self.plan
        with parallel_region():
            if plan.isa_name == "amx":
                micro.amx_configure(plan.tile[0], plan.step)
            with (
                blocks_of(plan, self.buffers.weight) as weights,
                workspace(plan.tile_rows * plan.isa.columns, "int32") as sums,
            ):
                yield _Memory(sums, weights)
            if plan.isa_name == "amx":
                micro.amx_release()

    def _product(self, memory, a, at, rows, first, group, barrier: bool = False) -> None:
        """All tiles of ``rows`` rows of A from ``a[at]`` on. Output rows count from ``first`` (flat: image ``first``).

        The last tile of rows begins early enough to end with them: it computes some rows a second time, and nothing
        beyond the end of A is read.
        """
        plan, tile = self.plan, self.plan.tile_rows
        blocks = plan.blocks
        row_tiles = -(-rows // tile) if isinstance(rows, int) else (rows + tile - 1) // tile
        with parallel(row_tiles * len(blocks), barrier) as unit:
            tiles = row_tiles
            if plan.by_columns:
                number, tile_number = unit // row_tiles, unit % row_tiles
            elif not plan.unpacks_blocks:
                number, tile_number = unit % len(blocks), unit // len(blocks)
            else:
                number, tile_number, tiles = self._grouped(memory.weights.state, unit, row_tiles)
            row = T.Bind(tirx.max(i64(0), tirx.min(tile_number * tile, rows - tile)))
            count = tirx.min(i64(tile), i64(rows)) if plan.mode in ("rows", "columns", "frames") else i64(tile)
            self._blocks(a, at, row, count, first, group, number, blocks, memory, tile_number, tiles)

    def _grouped(self, state: State, unit, row_tiles) -> tuple:
        """(block, tile of rows, tiles of its group) of a unit: threads share the rows, and unpack blocks of weights.

        Tiles go through a block group by group: half of them together, or what a core's second cache holds.
        """
        plan, columns = self.plan, len(self.plan.blocks)
        most = max(1, RESIDENT // (plan.tile_rows * plan.pitch))
        groups = (row_tiles + (2 * most - 1)) // (2 * most) * 2
        state["size"] = (row_tiles + groups - 1) // groups
        size = state["size"]
        state["first"] = unit // (size * columns) * size
        first = state["first"]
        state["tiles"] = tirx.min(size, row_tiles - first)
        tiles, rest = state["tiles"], T.Bind(unit - first * columns)
        return rest // tiles, T.Bind(first + rest % tiles), tiles

    def _blocks(self, a, at, row, count, first, group, number, blocks, memory, tile_number=0, tiles=1) -> None:
        """Block ``number`` of columns: the last may be narrower than the others and has code of its own."""
        whole, (tail_at, tail) = blocks[0][1], blocks[-1]
        weights = sum(self.plan.block_size(runs) for _, runs in blocks)
        words = sum(self.epilogue.constants.words(runs) for _, runs in blocks)

        def tile(column, runs, index):
            start = T.Bind(group * weights + index * self.plan.block_size(whole))
            constants = group * words + index * self.epilogue.constants.words(whole)
            block = memory.weights.block(start, group * len(blocks) + index, tiles)
            arguments = (self.plan, a, at + row * self.plan.pitch, block, memory.sums, runs)
            if self.plan.isa_name == "amx" and self.plan.by_columns and runs == whole:
                micro.amx(*arguments, ahead=self._ahead(tile_number, runs))
            else:
                micro.MICROKERNELS[self.plan.isa_name](*arguments)
            column = group * self.plan.columns + column
            self._finish(memory.sums, row, count, first, column, T.Bind(constants), runs)

        if tail == whole:
            tile(number * self.plan.isa.columns, whole, number)
            return
        with T.If(number < len(blocks) - 1):
            with T.Then():
                if len(blocks) > 1:
                    tile(number * self.plan.isa.columns, whole, number)
                else:
                    T.evaluate(i64(0))
            with T.Else():
                tile(i64(tail_at), tail, i64(len(blocks) - 1))

    def _ahead(self, tile_number, runs) -> tuple:
        """What of the next block's weights a tile of rows asks for in each step: all tiles together ask for all of it.

        Weights come from beyond the core's caches once; without this the first tile of every block waits for them.
        """
        lines = max(1, min(2, padded_width(runs) // 16) * 16 * self.plan.step // self.plan.per_byte // CACHE_LINE)
        sharing = lines if self.plan.mode == "frames" else min(lines, -(-self.plan.image_rows // self.plan.tile_rows))
        each = lines // sharing
        return T.Bind(self.plan.block_size(runs) // self.plan.per_byte + tile_number * (each * CACHE_LINE)), each

    def _finish(self, acc, row, count, first, column, constants_at, runs) -> None:
        """Rescale a tile of sums, run by run, and store it."""
        plan, width, at = self.plan, padded_width(runs), constants_at
        for run in runs:
            constants = self.epilogue.load(self.buffers, at, run, plan.isa)
            at = at + self.epilogue.constants.words((run,))
            with serial(count) as r:
                operands = (accumulated(acc, r * width + run.start, run),)
                if plan.mode != "flat":
                    self._emit(operands, constants, (first + row + r) * plan.co + column + run.start, run)
                    continue
                (oh, ow), padded_width_ = plan.output, plan.padded[1]
                pixel = T.Bind(row + r)
                y, x = pixel // padded_width_, pixel % padded_width_
                with T.If(x < ow), T.Then():
                    index = ((first * oh + y) * ow + x) * plan.co + column + run.start
                    self._emit(operands, constants, index, run)

    def _emit(self, operands, constants, index, run: Run) -> None:
        index = T.Bind(index)
        if self.epilogue.residual:
            operands += (self.epilogue.residual_of(self.buffers.residual, index, run),)
        store(self.buffers.out, index, self.epilogue.apply(operands, constants), run)
