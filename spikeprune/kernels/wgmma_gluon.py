"""The engine's products on Hopper's tensor cores: what `split_integer.limb_product` computes, to the same bits, in
Gluon. Which
of them runs, in which tiles: `wgmma.py`.

Triton waits for each int8 product before it issues the next (`warp_group_dot_wait {pendings = 0}`, whatever the
stages), so that the tensor cores idle at every wait. Here three limbs of a chunk are under way while the next chunks
arrive by TMA, and one warpgroup's neurons fire while another's products run.

| kernel | what it computes | stays on the chip |
|---|---|---|
| `held_product` | trains that fire step by step, of up to `wgmma.HELD` inputs | weights over all steps; membranes |
| `streamed_product` | currents; trains in closed form | |

A tile of `held_product` reads its weights once, three bytes for each, and then the train of its rows, chunk by chunk
through a ring; `streamed_product` reads both through one. What leaves the chip is the answer alone.

Gluon is Triton's lower level, and still moves: RELEASES are those that these kernels were compiled with.
"""

from __future__ import annotations

from spikeprune.kernels.equilibrium import INSTALLED

RELEASES = ((3, 6), (3, 7))
GLUON = False

if INSTALLED:
    import triton

    GLUON = tuple(int(x) for x in triton.__version__.split(".")[:2]) in RELEASES

if GLUON:
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia.hopper import (
        fence_async_shared,
        mbarrier,
        tma,
        warpgroup_mma,
        warpgroup_mma_wait,
    )

    from spikeprune.kernels.firing import current, fire, gelu

    meet = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # of the warps of this partition

    @gluon.jit
    def three(x, w, link, h, m, o, more):
        """The next link of the three sums, under way."""
        h = warpgroup_mma(x, w.index(3 * link).permute((1, 0)), h, use_acc=more, is_async=True)
        m = warpgroup_mma(x, w.index(3 * link + 1).permute((1, 0)), m, use_acc=more, is_async=True)
        o = warpgroup_mma(x, w.index(3 * link + 2).permute((1, 0)), o, use_acc=more, is_async=True)
        return h, m, o

    @gluon.jit
    def fetch(a, x, full, slot, t, link, wanted, row, rows, BM: gl.constexpr, BK: gl.constexpr):
        """Starts the train's chunk `link` at step t into `slot`."""
        mbarrier.expect(full.index(slot), BM * BK, pred=wanted)
        tma.async_copy_global_to_shared(a, [t * rows + row, link * BK], full.index(slot), x.index(slot), pred=wanted)

    @gluon.jit
    def refill(
        a, x, full, slot, t, link, wanted, row, rows, steps,
        LINKS: gl.constexpr, RING: gl.constexpr, BM: gl.constexpr, BK: gl.constexpr,
    ):  # fmt: skip
        """After chunk `link` of step t its slot takes the one that comes RING later."""
        link += RING
        t += link // LINKS
        fetch(a, x, full, slot, t, link % LINKS, wanted & (t < steps), row, rows, BM, BK)

    @gluon.jit
    def walk(
        a, x, w, full, ready, scale, bias, theta, kept, units, train,
        row, rows, column, here, stretch, steps, leak, start, total,
        LINKS: gl.constexpr, RING: gl.constexpr, MODE: gl.constexpr, ACT: gl.constexpr, TERNARY: gl.constexpr,
        LEAKS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    ):  # fmt: skip
        """One warpgroup's rows through all steps."""
        mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, BN, 32])
        for i in gl.static_range(RING):
            fetch(a, x, full, i, i // LINKS, i % LINKS, i // LINKS < steps, row, rows, BM, BK)
        col = column + gl.arange(0, BN, layout=gl.SliceLayout(0, mma))
        factor, shift = gl.load(scale + col)[None, :], gl.load(bias + col)[None, :]
        alive, size = (gl.load(kept + col) != 0)[None, :], gl.load(theta + col)[None, :]
        zero = gl.zeros((BM, BN), gl.float32, mma)
        u, before, n = zero + start * size, zero, zero
        size = gl.where(alive, size, float("inf"))
        bytes16: gl.constexpr = gl.BlockedLayout([1, 16], [512 // BN, BN // 16], [4, 1], [1, 0])
        own = row + gl.arange(0, BM, layout=gl.SliceLayout(1, bytes16))
        inside = (own < rows)[:, None]
        to = here + gl.arange(0, BN, layout=gl.SliceLayout(0, bytes16))
        train += own.to(gl.int64)[:, None] * stretch + to[None, :]
        mbarrier.wait(ready, 0)
        slot = 0
        phase = 0
        last = RING - 1
        for t in range(steps):
            h = gl.zeros((BM, BN), gl.int32, mma)
            m = gl.zeros((BM, BN), gl.int32, mma)
            o = gl.zeros((BM, BN), gl.int32, mma)
            for c in range(LINKS):
                mbarrier.wait(full.index(slot), phase)
                h, m, o = three(x.index(slot), w, c, h, m, o, c > 0)
                h, m, o = warpgroup_mma_wait(3, deps=[h, m, o])
                meet()  # the chunk before is done with: its slot takes the one that comes RING later
                refill(a, x, full, last, t, c - 1, c > 0, row, rows, steps, LINKS, RING, BM, BK)
                last = slot
                slot += 1
                if slot == RING:
                    slot = 0
                    phase ^= 1
            h, m, o = warpgroup_mma_wait(0, deps=[h, m, o])
            meet()
            refill(a, x, full, last, t, LINKS - 1, True, row, rows, steps, LINKS, RING, BM, BK)
            y = current(h, m, o, factor * gl.load(units + t), shift)
            if ACT == 1:
                y = gelu(y)
            out, _, u, before, n = fire(y, t, u, before, n, size, leak, total, TERNARY, MODE, LEAKS, False)
            gl.store(train, gl.convert_layout(out, bytes16), mask=inside)
            train += rows.to(gl.int64) * stretch

    @gluon.jit(do_not_specialize=["rows", "steps"])
    def held_product(
        a, codes, scale, bias, theta, kept, units, train,
        rows, columns, first, stretch, steps, leak, start, total,
        LINKS: gl.constexpr, RING: gl.constexpr, MODE: gl.constexpr, ACT: gl.constexpr, TERNARY: gl.constexpr,
        LEAKS: gl.constexpr, PAIR: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    ):  # fmt: skip
        """Trains a `[S, rows, width]` -> the trains `[S, rows, stretch]` of neurons behind the columns from `first` on.
        PAIR: two warpgroups, each with its own rows at its own pace, over the same weights."""
        tiles = stretch // BN
        here = (gl.program_id(0) % tiles) * BN
        column = first + here
        row = (gl.program_id(0) // tiles) * (2 * BM if PAIR else BM)
        w = gl.allocate_shared_memory(gl.int8, [3 * LINKS, BN, BK], codes.layout)
        ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
        mbarrier.init(ready, count=1)
        x, full = ring(a, RING, BM, BK)
        if PAIR:
            x2, full2 = ring(a, RING, BM, BK)
        fence_async_shared()
        meet()
        mbarrier.expect(ready, 3 * LINKS * BN * BK)
        for c in gl.static_range(LINKS):
            for i in gl.static_range(3):
                tma.async_copy_global_to_shared(codes, [i * columns + column, c * BK], ready, w.index(3 * c + i))
        if PAIR:
            gl.warp_specialize(
                [
                    (walk, (a, x, w, full, ready, scale, bias, theta, kept, units, train,
                        row, rows, column, here, stretch, steps, leak, start, total,
                        LINKS, RING, MODE, ACT, TERNARY, LEAKS, BM, BN, BK)),
                    (walk, (a, x2, w, full2, ready, scale, bias, theta, kept, units, train,
                        row + BM, rows, column, here, stretch, steps, leak, start, total,
                        LINKS, RING, MODE, ACT, TERNARY, LEAKS, BM, BN, BK)),
                ],
                [4],
                [240],
            )  # fmt: skip
        else:
            walk(
                a, x, w, full, ready, scale, bias, theta, kept, units, train,
                row, rows, column, here, stretch, steps, leak, start, total,
                LINKS, RING, MODE, ACT, TERNARY, LEAKS, BM, BN, BK,
            )  # fmt: skip

    @gluon.jit
    def ring(a, RING: gl.constexpr, BM: gl.constexpr, BK: gl.constexpr):
        """Slots for chunks of the train, and barriers at which they are waited for."""
        x = gl.allocate_shared_memory(gl.int8, [RING, BM, BK], a.layout)
        full = gl.allocate_shared_memory(gl.int64, [RING, 1], mbarrier.MBarrierLayout())
        for i in gl.static_range(RING):
            mbarrier.init(full.index(i), count=1)
        return x, full

    @gluon.jit(do_not_specialize=["rows", "steps"])
    def streamed_product(
        a, codes, scale, bias, theta, kept, units, sent,
        rows, columns, first, stretch, steps, total,
        LINKS: gl.constexpr, RING: gl.constexpr, ACT: gl.constexpr, TERNARY: gl.constexpr, FIRES: gl.constexpr,
        GROUP: gl.constexpr, WARPS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    ):  # fmt: skip
        """Currents `[S, rows, stretch]` float32 of the columns from `first` on, or (FIRES) what their neurons send in
        closed form, int8. A program has one tile of one step; tiles of the same columns run GROUP at a time."""
        mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], instr_shape=[16, BN, 32])
        tiles = (stretch + BN - 1) // BN
        below = (rows + BM - 1) // BM
        block = gl.program_id(0) // (GROUP * tiles)
        place = gl.program_id(0) % (GROUP * tiles)
        which = block * GROUP + place % GROUP
        here = (place // GROUP) * BN
        t = which // below
        row = (which % below) * BM
        column = first + here
        w = gl.allocate_shared_memory(gl.int8, [RING * 3, BN, BK], codes.layout)
        x, full = ring(a, RING, BM, BK)
        fence_async_shared()
        meet()
        for i in gl.static_range(RING):
            both(a, codes, x, w, full, i, i, t * rows + row, column, columns, i < LINKS, BM, BN, BK)
        h = gl.zeros((BM, BN), gl.int32, mma)
        m = gl.zeros((BM, BN), gl.int32, mma)
        o = gl.zeros((BM, BN), gl.int32, mma)
        slot = 0
        phase = 0
        last = RING - 1
        for c in range(LINKS):
            mbarrier.wait(full.index(slot), phase)
            h, m, o = three(x.index(slot), w, slot, h, m, o, True)
            h, m, o = warpgroup_mma_wait(3, deps=[h, m, o])
            meet()
            link = c - 1 + RING
            wanted = (c > 0) & (link < LINKS)
            both(a, codes, x, w, full, last, link, t * rows + row, column, columns, wanted, BM, BN, BK)
            last = slot
            slot += 1
            if slot == RING:
                slot = 0
                phase ^= 1
        h, m, o = warpgroup_mma_wait(0, deps=[h, m, o])
        col = here + gl.arange(0, BN, layout=gl.SliceLayout(0, mma))
        real = col < stretch
        col = gl.where(real, col, 0)
        factor, shift = gl.load(scale + first + col)[None, :], gl.load(bias + first + col)[None, :]
        y = current(h, m, o, factor * gl.load(units + gl.minimum(t, steps - 1)), shift)
        if FIRES:
            if ACT == 1:
                y = gelu(y)
            alive = gl.load(kept + first + col) != 0
            size = gl.where(alive, gl.load(theta + first + col), float("inf"))[None, :]
            out, _, _, _, _ = fire(y, t, y, y, y, size, 1.0, total, TERNARY, 0, False, False)
            bytes16: gl.constexpr = gl.BlockedLayout([1, 16], [512 // BN, BN // 16], [WARPS, 1], [1, 0])
            store(sent, gl.convert_layout(out, bytes16), t, row, rows, here, stretch, steps, bytes16, BM, BN)
        else:
            store(sent, y, t, row, rows, here, stretch, steps, mma, BM, BN)

    @gluon.jit
    def both(
        a, codes, x, w, full, slot, link, row, column, columns, wanted,
        BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    ):  # fmt: skip
        """Starts chunk `link` of the train and of the three limbs into `slot`."""
        mbarrier.expect(full.index(slot), (BM + 3 * BN) * BK, pred=wanted)
        tma.async_copy_global_to_shared(a, [row, link * BK], full.index(slot), x.index(slot), pred=wanted)
        for i in gl.static_range(3):
            into = w.index(3 * slot + i)
            place = [i * columns + column, link * BK]
            tma.async_copy_global_to_shared(codes, place, full.index(slot), into, pred=wanted)

    @gluon.jit
    def store(sent, out, t, row, rows, here, stretch, steps, layout: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr):
        own = row + gl.arange(0, BM, layout=gl.SliceLayout(1, layout))
        col = here + gl.arange(0, BN, layout=gl.SliceLayout(0, layout))
        sent += (t.to(gl.int64) * rows + own)[:, None] * stretch + col[None, :]
        gl.store(sent, out, mask=(own < rows)[:, None] & (col < stretch)[None, :] & (t < steps))
