"""Plants a mistake at a time in the bilinear kernels by wgmma, and shows that a test fails.

`make mutants`, or `python tests/cuda_shim/mutants.py [NAME ...]` for some of them, works on a copy of the sources and
the tests in a temporary folder, where the shim is built anew for each mistake.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = "tests/fbp_kernels/cuda"
FORWARD, BACKWARD = "test_hopper.py", "test_hopper_backward.py"
TF32, TF32_BACKWARD = "test_hopper_tf32.py", "test_hopper_tf32_backward.py"
SMALL, SMALL_BACKWARD = "test_hopper_split.py", "test_hopper_small.py"


@dataclass(frozen=True)
class Mutant:
    """A mistake.

    Attributes:
        name: what is wrong.
        source: the file in `kernels/csrc/cuda`.
        right: what stands there, once.
        wrong: what is to stand there.
        tests: the file of tests that are to find it.
    """

    name: str
    source: str
    right: str
    wrong: str
    tests: str = FORWARD


DESCRIPTOR, RING, TILES = "matrix_descriptor.h", "wgmma_ring.h", "wgmma_tiles.h"
EPILOGUE, KERNEL = "wgmma_epilogue.h", "bilinear_forward_wgmma.cu"
GRADIENT_TILES, GRADIENTS = "wgmma_gradient_tiles.h", "bilinear_backward_wgmma.cu"
PASS, SPLIT = "bilinear_differentiate.cu", "bilinear_forward_split.cu"
TF32_OPERANDS, TF32_EPILOGUE, MAPS = "wgmma_tf32.h", "wgmma_tf32_epilogue.h", "tensor_map.h"
ROWS, STORE = "bilinear_backward_small.cu", "wgmma_store.h"

MUTANTS = (
    # Descriptors and layouts.
    Mutant(
        "descriptor: next box",
        DESCRIPTOR,
        "kAlong == Along::depth ? 0 : beside",
        "kAlong == Along::depth ? 0 : beside / 2",
    ),
    Mutant(
        "descriptor: next pattern",
        DESCRIPTOR,
        "beside, kPatternLines * kLine,",
        "beside, kLine,",
    ),
    Mutant("descriptor: swizzle of 64 bytes", DESCRIPTOR, "kSwizzle128 = 1", "kSwizzle128 = 2"),
    Mutant(
        "descriptor: step along lines",
        RING,
        "kAlongStep = kWgmmaDepth * 2;",
        "kAlongStep = kWgmmaDepth * 4;",
    ),
    Mutant(
        "descriptor: step across lines",
        RING,
        "kWgmmaDepth * Stage::kColumnLine;",
        "kWgmmaDepth * Stage::kColumnLine / 2;",
    ),
    Mutant(
        "descriptor: both warpgroups take the same rows",
        RING,
        "(first.rows[warpgroup], kBoxBytes)",
        "(first.rows[0], kBoxBytes)",
    ),
    # Waiting, and saying that one is done.
    Mutant(
        "no wait for a stage to be full",
        RING,
        "    mbarrier_wait(&ring.full[turn.stage], turn.parity);\n",
        "",
    ),
    Mutant(
        "no wait for a stage to be empty",
        RING,
        "    mbarrier_wait(&ring.empty[turn.stage], turn.parity ^ 1);\n",
        "",
    ),
    Mutant(
        "parity of a full stage",
        RING,
        "&ring.full[turn.stage], turn.parity)",
        "&ring.full[turn.stage], turn.parity ^ 1)",
    ),
    Mutant(
        "parity of an empty stage",
        RING,
        "&ring.empty[turn.stage], turn.parity ^ 1)",
        "&ring.empty[turn.stage], turn.parity)",
    ),
    Mutant("parity never changes", RING, "    parity ^= 1;\n", ""),
    Mutant(
        "a stage is given back while it is read",
        RING,
        "if (group == 0 && before >= 0) release_stage(ring, before);\n    }\n    before = turn.stage;",
        "if (group == 0) release_stage(ring, turn.stage);\n    }",
    ),
    Mutant(
        "no wait for the products of the step before", RING, "    wgmma_wait_for_earlier();\n", ""
    ),
    Mutant("no wait for the last products", RING, "  wgmma_wait_for_all(sums);\n", ""),
    Mutant("no fence before products", RING, "    wgmma_fence();\n", ""),
    Mutant("products are not committed", RING, "    wgmma_commit();\n", ""),
    Mutant(
        "the last stage is not given back",
        RING,
        "  wgmma_wait_for_all(sums);\n  if (before >= 0) release_stage(ring, before);\n",
        "  wgmma_wait_for_all(sums);\n",
    ),
    Mutant(
        "too few bytes are expected",
        RING,
        "mbarrier_arrive_expecting(full, bytes);",
        "mbarrier_arrive_expecting(full, bytes - kBoxBytes);",
    ),
    Mutant(
        "too many bytes are expected",
        RING,
        "mbarrier_arrive_expecting(full, bytes);",
        "mbarrier_arrive_expecting(full, bytes + kBoxBytes);",
    ),
    Mutant(
        "one reader is not waited for",
        RING,
        "&ring.empty[i], readers)",
        "&ring.empty[i], readers - 1)",
    ),
    Mutant("barriers are not made known to copies", KERNEL, "    mbarrier_init_fence();\n", ""),
    Mutant(
        "a ring of one stage too many",
        RING,
        "if (++stage < kStages) return;",
        "if (++stage <= kStages) return;",
    ),
    # What is copied and multiplied.
    Mutant(
        "depth of a copy",
        RING,
        "full, step * Ring::kDepth);",
        "full, step * Ring::kDepth / 2);",
    ),
    Mutant(
        "all boxes go to one place",
        TILES,
        "bulk_copy(stage.columns[i],",
        "bulk_copy(stage.columns[i / 2],",
    ),
    Mutant(
        "boxes side by side, whatever outputs they hold",
        TILES,
        "box * box_columns() +",
        "box * kBoxColumns +",
    ),
    Mutant(
        "the trunk of a copy", TILES, "column(i, chunk), depth, h);", "column(i, chunk), depth, 0);"
    ),
    Mutant(
        "box of half as many rows",
        KERNEL,
        "mapped_input(part, side, problem.B), 2, kRingRows,",
        "mapped_input(part, side, problem.B), 2, kRingRows / 2,",
    ),
    Mutant("sums begin anew in every step", RING, "sums, step > 0 || group > 0)", "sums, false)"),
    Mutant("more registers than a block has", KERNEL, "take_registers<232>", "take_registers<240>"),
    # Products and sums.
    Mutant(
        "sums of squares of one half of a row, twice",
        TILES,
        "(thread % 2 * (kChunks / 2) + i)",
        "i",
    ),
    Mutant(
        "rows that do not count",
        EPILOGUE,
        "const bool counts = (counted",
        "const bool counts = true || (counted",
    ),
    Mutant(
        "lanes keep what they should hand on", EPILOGUE, "  swap(v1, v3, (lane & 2) != 0, 2);\n", ""
    ),
    Mutant(
        "outputs are written before all lanes have added",
        EPILOGUE,
        "    __syncwarp();\n    const int per_box",
        "    const int per_box",
    ),
    Mutant(
        "sums are cleared before all lanes have read",
        EPILOGUE,
        "    __syncwarp();  // before the sums are those of the next tile\n",
        "",
    ),
    Mutant(
        "rows past the batch are written",
        EPILOGUE,
        "      if (row + r >= problem.B) break;\n",
        "",
    ),
    Mutant("random words of other rows", EPILOGUE, "(others >> place & 1)", "(others >> i & 1)"),
    # The backward.
    Mutant(
        "gradients of weights: operands as if along the depth",
        GRADIENTS,
        "own.template operands<Along::other>()",
        "own.template operands<Along::depth>()",
        BACKWARD,
    ),
    Mutant(
        "gradients of inputs: operands as if across the depth",
        GRADIENTS,
        "own.template operands<Along::depth>()",
        "own.template operands<Along::other>()",
        BACKWARD,
    ),
    Mutant(
        "gradients of inputs: both warpgroups get the same rows",
        GRADIENT_TILES,
        "full, depth, row + i * kBoxColumns, h)",
        "full, depth, row, h)",
        BACKWARD,
    ),
    Mutant(
        "gradients of weights: inputs of one trunk",
        GRADIENT_TILES,
        "row + i * kBoxColumns, h, depth)",
        "row + i * kBoxColumns, 0, depth)",
        BACKWARD,
    ),
    Mutant(
        "gradients of weights: all boxes are the first",
        GRADIENT_TILES,
        "column + i * kBoxColumns, depth, h)",
        "column, depth, h)",
        BACKWARD,
    ),
    Mutant(
        "rows that do not count are not cleared",
        GRADIENT_TILES,
        "return job().of == Gradient::weight && part().lengths != nullptr;",
        "return false;",
        BACKWARD,
    ),
    Mutant(
        "half of a row is cleared",
        GRADIENT_TILES,
        "i < kLine; i += kChunkBytes",
        "i < kLine / 2; i += kChunkBytes",
        BACKWARD,
    ),
    Mutant(
        "what is cleared is not waited for",
        GRADIENTS,
        "mbarrier_wait(&own.memory.cleared[turn.stage], own.cleared.next(turn.stage));\n",
        "own.cleared.next(turn.stage);\n",
        BACKWARD,
    ),
    Mutant(
        "parity of what is cleared never changes",
        GRADIENT_TILES,
        "    parities_ ^= 1u << stage;\n",
        "",
        BACKWARD,
    ),
    Mutant(
        "rows are cleared before they have come",
        GRADIENT_TILES,
        "      mbarrier_wait(&memory.ring.full[turn.stage], turn.parity);\n",
        "",
        BACKWARD,
    ),
    Mutant(
        "the warp that clears is no reader",
        GRADIENTS,
        "init_ring(memory.ring, kConsumerWarps + 1)",
        "init_ring(memory.ring, kConsumerWarps)",
        BACKWARD,
    ),
    Mutant(
        "tiles without rows that count are multiplied by those who multiply alone",
        GRADIENTS,
        "tile.steps(), own.warpgroup(),\n      own.template operands<Along::depth>()",
        "static_cast<int>(ceil_div(tile.job.depth, kRingDepth)), own.warpgroup(),\n"
        "      own.template operands<Along::depth>()",
        BACKWARD,
    ),
    Mutant(
        "gradients of rows that do not count",
        GRADIENTS,
        "    x = alive[half] ? x : 0.0f;\n",
        "",
        BACKWARD,
    ),
    Mutant(
        "no gradient through the norms",
        GRADIENTS,
        "if (!part.adaptive || b >=",
        "if (true || b >=",
        BACKWARD,
    ),
    Mutant(
        "lanes write what they should hand on",
        STORE,
        "    exchange(words[0], words[1], words[2], words[3]);\n",
        "",
        BACKWARD,
    ),
    Mutant(
        "rows past the end are written",
        STORE,
        "r < target.rows ? smaller",
        "true ? smaller",
        BACKWARD,
    ),
    Mutant(
        "columns past the end are written",
        STORE,
        "smaller(target.columns - c, kVector<T>)",
        "i64{kVector<T>}",
        BACKWARD,
    ),
    Mutant(
        "vectors where rows begin anywhere",
        STORE,
        "target.stride % kVector<T> == 0",
        "true",
        BACKWARD,
    ),
    Mutant(
        "products may see what was before rows are cleared",
        GRADIENT_TILES,
        "        proxy_fence();\n",
        "",
        BACKWARD,
    ),
    Mutant("outputs do not advance with columns", PASS, "      ++o;\n", "", BACKWARD),
    Mutant(
        "elements of other rows are dropped",
        "bilinear_gradients.h",
        "~(1u << (kQuad * i + j))",
        "~(1u << (kQuad * i + kQuad - 1 - j))",
        BACKWARD,
    ),
    Mutant(
        "du times the scale of the other side",
        PASS,
        "d[side] * scales[j].scale[side]",
        "d[side] * scales[j].scale[1 - side]",
        BACKWARD,
    ),
    Mutant(
        "what was kept is written over",
        "bilinear_backward.cu",
        "? Placing::beside\n",
        "? Placing::in_place\n",
        BACKWARD,
    ),
    # The forward of small batches.
    Mutant(
        "few columns: swizzle of 128 bytes",
        DESCRIPTOR,
        "kLine == kLineBytes ? kSwizzle128 : kSwizzle64",
        "kSwizzle128",
        SMALL,
    ),
    Mutant(
        "few columns: steps as of long lines",
        RING,
        "kWgmmaDepth * Stage::kColumnLine;",
        "kWgmmaDepth * kLineBytes;",
        SMALL,
    ),
    Mutant(
        "a share reads its own sums for all",
        SPLIT,
        "rank_in_cluster() - static_cast<unsigned>(share_ - share)",
        "rank_in_cluster()",
        SMALL,
    ),
    Mutant(
        "sums are read before all shares have them",
        SPLIT,
        "  wait_for_cluster();\n  if (block.is_there()) block.combine();",
        "  if (block.is_there()) block.combine();",
        SMALL,
    ),
    Mutant(
        "a block ends while others read its sums",
        SPLIT,
        "  wait_for_cluster();  // a block's memory is there until all have read it\n",
        "",
        SMALL,
    ),
    Mutant(
        "all parts of projections begin where the first does",
        SPLIT,
        "      begin = 0;\n",
        "",
        SMALL,
    ),
    Mutant(
        "copies begin where projections do",
        SPLIT,
        "depth += begin * kRingDepth;",
        "",
        SMALL,
    ),
    Mutant(
        "shares of another size are read than are written",
        SPLIT,
        "    int end = own_.begin(1, part_.H);\n",
        "    int end = own_.begin(1, part_.H) + 1;\n",
        SMALL,
    ),
    Mutant(
        "the order of sums goes on from share to share",
        SPLIT,
        "          ++share;\n          place = 0;\n",
        "          ++share;\n",
        SMALL,
    ),
    Mutant(
        "sums of squares of each chunk",
        SPLIT,
        "part_.adaptive && product == 0",
        "part_.adaptive",
        SMALL,
    ),
    Mutant(
        "no sums of squares of what a share has nothing of",
        SPLIT,
        "      put_squares(1, 0);\n",
        "",
        SMALL,
    ),
    Mutant("sums of rows that a tile has not", SPLIT, "        if (r < Tile::kRows)\n", "", SMALL),
    Mutant(
        "outputs are written before all warps have added",
        SPLIT,
        "[lane()] = sums[i];\n      __syncthreads();\n",
        "[lane()] = sums[i];\n",
        SMALL,
    ),
    Mutant(
        "products are written before all outputs are",
        SPLIT,
        "store(quad + warp());\n      __syncthreads();\n",
        "store(quad + warp());\n",
        SMALL,
    ),
    Mutant(
        "rows of a small batch that do not count",
        SPLIT,
        "alive ? x * factors[i] : 0.0f",
        "x * factors[i]",
        SMALL,
    ),
    Mutant(
        "kept projections of rows that do not count", SPLIT, "alive ? w[i] : 0.0f", "w[i]", SMALL
    ),
    Mutant(
        "random words of the first tile", SPLIT, "(tile_.row + quad) / kQuad", "quad / kQuad", SMALL
    ),
    Mutant(
        "one reader of a small batch is not waited for",
        SPLIT,
        "init_ring(memory.ring, kWarpgroup / kWarp)",
        "init_ring(memory.ring, kWarpgroup / kWarp - 1)",
        SMALL,
    ),
    Mutant(
        "the last share of a tile in a cluster of several reads another tile's",
        SPLIT,
        "index & ((1 << own.shift) - 1)",
        "index % 8 >> (3 - own.shift)",
        SMALL,
    ),
    # The forward in TF32.
    Mutant(
        "TF32: numbers are copied as they are",
        MAPS,
        "CU_TENSOR_MAP_DATA_TYPE_TFLOAT32\n",
        "CU_TENSOR_MAP_DATA_TYPE_FLOAT32\n",
        TF32,
    ),
    Mutant(
        "TF32: float32 without leave",
        TILES,
        "Dtype::float32 && !tf32",
        "Dtype::float32 && false",
        TF32,
    ),
    Mutant(
        "TF32: swizzle of columns as of long lines",
        TF32_OPERANDS,
        "^ line / 2 % 4)",
        "^ line % 4)",
        TF32,
    ),
    Mutant("TF32: no swizzle of columns", TF32_OPERANDS, " ^ line / 2 % 4)", ")", TF32),
    Mutant(
        "TF32: the first four lines, twice", TF32_OPERANDS, "lane % 4 + 4 * half", "lane % 4", TF32
    ),
    Mutant(
        "TF32: step of columns",
        TF32_OPERANDS,
        "depth(group, i) * kTf32BoxLine)",
        "depth(group, i) / 2 * kTf32BoxLine)",
        TF32,
    ),
    Mutant(
        "TF32: step of rows",
        TF32_OPERANDS,
        "stage + depth(group, i) *",
        "stage + 2 * depth(group, i) *",
        TF32,
    ),
    Mutant(
        "TF32: one box for all warps",
        TF32_OPERANDS,
        "columns_(first.columns[warp])",
        "columns_(first.columns[0])",
        TF32,
    ),
    Mutant(
        "TF32: sums of a step begin anew in every product",
        TF32_OPERANDS,
        "more || i > 0",
        "more",
        TF32,
    ),
    Mutant(
        "TF32: lanes that have columns, in their order",
        TF32_EPILOGUE,
        "(column / 8) * 2 + (column / 4 % 2) * 4",
        "(column / 8) * 4 + (column / 4 % 2) * 2",
        TF32,
    ),
    Mutant(
        "TF32: lanes keep what they should hand on",
        TF32_EPILOGUE,
        "        v[i] = upper ? got : v[i];\n",
        "",
        TF32,
    ),
    Mutant(
        "TF32: scales are not waited for",
        TF32_EPILOGUE,
        "    mbarrier_wait(&shared_.scaled, turn_.parity);\n",
        "",
        TF32,
    ),
    Mutant(
        "TF32: scales are written while the last are read",
        TF32_EPILOGUE,
        "    wait_for_warps();  // they may read the last ones still\n",
        "",
        TF32,
    ),
    Mutant(
        "TF32: parity of scales never changes", TF32_EPILOGUE, "    turn_.parity ^= 1;\n", "", TF32
    ),
    Mutant(
        "TF32: a warp that scales is not waited for",
        TF32_EPILOGUE,
        "mbarrier_init(&scaled, kConsumerWarps)",
        "mbarrier_init(&scaled, kConsumerWarps - 1)",
        TF32,
    ),
    Mutant(
        "TF32: biases of the first chunk",
        TF32_EPILOGUE,
        "const int n = column(chunk) + i;",
        "const int n = column(0) + i;",
        TF32,
    ),
    Mutant(
        "TF32: products that do not count",
        TF32_EPILOGUE,
        "(counted[i] >> (2 * g + e) & 1) != 0 ?",
        "true ?",
        TF32,
    ),
    Mutant(
        "TF32: random words of the thread's own column for both",
        TF32_EPILOGUE,
        "(i == own_column ? own : others)",
        "own",
        TF32,
    ),
    Mutant("TF32: random words of other rows", TF32_EPILOGUE, ">> half & 3", "& 3", TF32),
    Mutant(
        "TF32: rows past the end are kept",
        TF32_EPILOGUE,
        "        if (8 * g + e >= rows) return;\n",
        "",
        TF32,
    ),
    Mutant(
        "TF32: rows that do not count are kept",
        TF32_EPILOGUE,
        "const float low = alive ?",
        "const float low = true ?",
        TF32,
    ),
    Mutant(
        "TF32: pairs where columns begin anywhere",
        TF32_EPILOGUE,
        " && reinterpret_cast<std::uintptr_t>(to) % 8 == 0;",
        ";",
        TF32,
    ),
    Mutant(
        "TF32: outputs past the last of a box",
        TF32_EPILOGUE,
        "smaller(per_box, tile.own.all - output)",
        "tile.own.all - output",
        TF32,
    ),
    Mutant(
        "TF32: vectors where outputs begin anywhere",
        TF32_EPILOGUE,
        "                   aligned && left == kVector<float>);",
        "                   left == kVector<float>);",
        TF32,
    ),
    Mutant(
        "TF32: outputs of one lane's rows for all who share a tile",
        TF32_EPILOGUE,
        "const int r = i % kLaneRows,",
        "const int r = first % kLaneRows,",
        TF32,
    ),
    # The backward in TF32.
    Mutant(
        "TF32, backward: rows of du begin where those before end",
        "bilinear_gradients.h",
        "return (B + kQuad - 1) / kQuad * kQuad;",
        "return B;",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: du is turned round before all warps have kept theirs",
        PASS,
        "    __syncthreads();\n    for (int side = 0; side < 2; ++side)\n      for (int c",
        "    for (int side = 0; side < 2; ++side)\n      for (int c",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: du is kept where it is not read",
        PASS,
        "memory_.turned[side][c][warp() ^ kept_at(c)]",
        "memory_.turned[side][c][warp()]",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: rows of the first tile, turned round",
        PASS,
        "b = position_.row * kPassRows + threadIdx.x % kPassWarps * kQuad;",
        "b = threadIdx.x % kPassWarps * kQuad;",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: columns past a part's are turned round",
        PASS,
        "if (column + c >= end_ || b >=",
        "if (b >=",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: rows past the batch are turned round",
        PASS,
        "end_ || b >= problem_.B ||",
        "end_ ||",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: du of the first trunk",
        PASS,
        "(h_ * part_.N + column + c) * row + b",
        "(column + c) * row + b",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: x by trunks where its batch is",
        GRADIENT_TILES,
        "of_input ? depth : h,",
        "of_input ? h : depth,",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: the right operand of the first tile",
        GRADIENT_TILES,
        "bulk_copy(stage.rows, right, full, depth, column, h);",
        "bulk_copy(stage.rows, right, full, depth, 0, h);",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: boxes of the left operand are the first",
        GRADIENT_TILES,
        "left, full, row + i * kTf32BoxColumns,",
        "left, full, row,",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: what is cleared is the right operand",
        GRADIENT_TILES,
        "auto& left(Ring::Stage& stage) { return stage.columns; }",
        "auto& left(Ring::Stage& stage) { return stage.rows; }",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: half of the steps",
        GRADIENT_TILES,
        "RingOf<Tf32StageOf<kWgmmaColumns>, kRingStages, kTf32StepDepth>",
        "RingOf<Tf32StageOf<kWgmmaColumns>, kRingStages, 2 * kTf32StepDepth>",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: rows as half precision has them",
        STORE,
        "return tf32_column(lane) + half;",
        "return lane / 4 + 8 * half;",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: lanes write what they should hand on",
        STORE,
        "vector.of[i] = second ? got : here;",
        "vector.of[i] = here;",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: pairs of lanes have neighbouring vectors",
        STORE,
        "8 * (lane % 2) + lane % 4 / 2 * 4",
        "8 * (lane % 4 / 2) + lane % 2 * 4",
        TF32_BACKWARD,
    ),
    Mutant(
        "TF32, backward: weights in boxes of du's lines",
        GRADIENTS,
        "of_input.right = tensor_map(dtype, weight, 1, kWgmmaColumns, kTf32StepDepth);",
        "of_input.right = tensor_map(dtype, weight, 1, kTf32StepDepth, kTf32StepDepth);",
        TF32_BACKWARD,
    ),
    # The backward of small batches.
    Mutant(
        "products take w for du",
        ROWS,
        "[&](const Turn& turn) { mbarrier_wait(&memory_.made[turn.stage], turn.parity); },",
        "[](const Turn&) {},",
        SMALL_BACKWARD,
    ),
    Mutant(
        "gradients of weights take w for du",
        ROWS,
        "      mbarrier_wait(&memory_.made[turn.stage], turn.parity);\n      __syncwarp();\n",
        "      __syncwarp();\n",
        SMALL_BACKWARD,
    ),
    Mutant(
        "du is made of what has not come",
        ROWS,
        "      if (piece == 0) mbarrier_wait(&memory_.ring.full[turn.stage], turn.parity);\n",
        "",
        SMALL_BACKWARD,
    ),
    Mutant(
        "products do not see du",
        ROWS,
        "      proxy_fence();\n",
        "",
        SMALL_BACKWARD,
    ),
    Mutant(
        "a warp that makes du is not waited for",
        ROWS,
        "mbarrier_init(&made, Rows::kWarps)",
        "mbarrier_init(&made, Rows::kWarps - 1)",
        SMALL_BACKWARD,
    ),
    Mutant(
        "lines of x that do not count stay",
        ROWS,
        "      if (!alive(first + i / kChunks))\n",
        "      if (false)\n",
        SMALL_BACKWARD,
    ),
    Mutant(
        "slopes are taken before they are there",
        ROWS,
        "    if (part_.adaptive) mbarrier_wait(&memory_.measured, 0);\n",
        "",
        SMALL_BACKWARD,
    ),
    Mutant(
        "du times the scale of the other side, in one launch",
        ROWS,
        "result.of[i] = narrow<T>(of[0] * scale[0]);",
        "result.of[i] = narrow<T>(of[0] * scale[1]);",
        SMALL_BACKWARD,
    ),
    Mutant(
        "du without its swizzle",
        ROWS,
        "(at ^ r % kPatternLines * kChunkBytes)",
        "at",
        SMALL_BACKWARD,
    ),
    Mutant(
        "every row of four lies as the first",
        ROWS,
        "(first ^ j * kChunkBytes)",
        "first",
        SMALL_BACKWARD,
    ),
    Mutant(
        "projections of the own side",
        ROWS,
        "own_.kept[1 - side_], full, n, 0, h_",
        "own_.kept[side_], full, n, 0, h_",
        SMALL_BACKWARD,
    ),
    Mutant(
        "weights of the first lines",
        ROWS,
        "own_.weight[side_], full, n, line(), h_",
        "own_.weight[side_], full, n, 0, h_",
        SMALL_BACKWARD,
    ),
    Mutant(
        "outputs of a step late",
        ROWS,
        "outputs(begin(place + 1))",
        "outputs(begin(place))",
        SMALL_BACKWARD,
    ),
    Mutant(
        "dx of rows that do not count",
        ROWS,
        "      x = counts[half] ? x : 0.0f;\n",
        "",
        SMALL_BACKWARD,
    ),
    Mutant(
        "the gradient of a bias from one warp",
        ROWS,
        "    for (const auto& sums : stage.sums) sum += sums[c];\n",
        "    sum = stage.sums[0][c];\n",
        SMALL_BACKWARD,
    ),
    Mutant(
        "a stage is given back before dW has it",
        ROWS,
        "      release_stage(ring, turn.stage);\n      if (result",
        "      if (result",
        SMALL_BACKWARD,
    ),
)


def copied(folder: Path) -> None:
    """Copies what the shim and its tests are made of."""
    for name in ("kernels/csrc", "kernels/cmake", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    # Less is spent on the compiler, which is most of what a mutant takes.
    settings = folder / "tests" / "cuda_shim" / "CMakeLists.txt"
    settings.write_text(settings.read_text().replace("-O2", "-O1"))


def tested(folder: Path, tests: str) -> tuple[bool, str]:
    """Whether all tests of a file pass there, and the first line that says why not."""
    command = (
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        "0",
        f"{TESTS}/{tests}",
    )
    environment = os.environ | {"PYTHONPATH": os.fspath(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    reasons = [line for line in done.stdout.splitlines() if line.startswith("E  ")]
    return done.returncode == 0, reasons[0][1:].strip() if reasons else done.stdout[-200:]


def main(names: list[str]) -> int:
    """Tries the mutants named, or all, and returns how many no test finds."""
    chosen = [m for m in MUTANTS if not names or m.name in names]
    survivors = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copied(folder)
        for tests in dict.fromkeys(m.tests for m in chosen):
            passed, why = tested(folder, tests)
            if not passed:
                raise SystemExit(f"the tests fail without a mistake: {why}")
        for mutant in chosen:
            path, start = folder / "kernels" / "csrc" / "cuda" / mutant.source, time.monotonic()
            text = path.read_text()
            if text.count(mutant.right) != 1:
                raise SystemExit(f"{mutant.name}: {mutant.source} has not once {mutant.right!r}")
            path.write_text(text.replace(mutant.right, mutant.wrong))
            passed, why = tested(folder, mutant.tests)
            path.write_text(text)
            survivors += passed
            verdict = "NOT FOUND" if passed else f"found: {why[:150]}"
            print(f"{mutant.name} ({time.monotonic() - start:.0f} s): {verdict}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} found")
    return survivors


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
