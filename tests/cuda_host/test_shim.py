"""The shim itself: what it computes is what CUDA defines, and it sees the bugs that are planted here."""

import numpy as np
import pytest
import torch

from cuda_host.host import HostModule, KernelError, rewritten, signatures

SEEDS = [0, 1, 2, 3, 4]
ONE = (1, 1, 1)


def launch(source, mode, seed, arguments, *, grid=1, block=64, shared=0, kernel="kernel"):
    HostModule(source, "planted.cu", mode=mode, seed=seed).launch(
        kernel, (grid, 1, 1), (block, 1, 1), arguments, shared
    )


def reports(source, arguments, **settings):
    """What the checking mode says under several orders; one at least must see something."""
    found = []
    for seed in SEEDS:
        try:
            launch(source, "check", seed, arguments(), **settings)
        except KernelError as error:
            found += error.reports
    assert found, "nothing was seen"
    return found


REDUCE = """
extern "C" __global__ void kernel(const float* x, float* out, long long count) {
  __shared__ float partial[64];
  float sum = 0.0f;
  for (long long i = threadIdx.x; i < count; i += blockDim.x) sum += x[i];
  partial[threadIdx.x] = sum;
  __syncthreads();
  for (int step = 32; step > 0; step /= 2) {
    if (threadIdx.x < step) partial[threadIdx.x] += partial[threadIdx.x + step];
    %s
  }
  if (threadIdx.x == 0) out[blockIdx.x] = partial[0];
}
"""


def reduce_arguments(count=300):
    x = torch.arange(count, dtype=torch.float32)
    return {"x": x, "out": torch.zeros(1), "count": np.int64(count)}


@pytest.mark.parametrize("mode", ["fast", "check"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_right_reduction_is_right_in_every_order(mode, seed):
    arguments = reduce_arguments()
    launch(REDUCE % "__syncthreads();", mode, seed, arguments)
    assert float(arguments["out"]) == 300 * 299 / 2


def test_a_missing_barrier_is_a_race_with_its_lines():
    found = reports(REDUCE % "", reduce_arguments)
    assert {report.kind for report in found} == {"race"}
    lines = {place for report in found for place in (report.where, report.other)}
    assert lines <= {"planted.cu:9", "planted.cu:12"}
    assert "planted.cu:9" in lines
    assert any("shared memory" in report.text for report in found)


def test_a_missing_barrier_is_a_wrong_sum_in_some_order():
    sums = []
    for seed in SEEDS:
        arguments = reduce_arguments()
        launch(REDUCE % "", "fast", seed, arguments)
        sums.append(float(arguments["out"]))
    assert set(sums) != {300 * 299 / 2}


WARP = """
extern "C" __global__ void kernel(float* out) {
  __shared__ float values[32];
  values[threadIdx.x] = threadIdx.x;
  %s
  out[threadIdx.x] = values[31 - threadIdx.x];
}
"""


def test_a_missing_syncwarp_is_a_race():
    found = reports(WARP % "", lambda: {"out": torch.zeros(32)}, block=32)
    assert {report.kind for report in found} == {"race"}
    out = torch.zeros(32)
    for seed in SEEDS:
        launch(WARP % "__syncwarp();", "check", seed, {"out": out}, block=32)
        assert torch.equal(out, torch.arange(31, -1, -1.0))


def test_a_shuffle_orders_no_memory():
    found = reports(WARP % "__shfl_sync(0xffffffffu, 0, 0);", lambda: {"out": torch.zeros(32)}, block=32)
    assert {report.kind for report in found} == {"race"}


def test_a_syncwarp_of_some_lanes_orders_only_those():
    half = "if (threadIdx.x < 16) __syncwarp(0x0000ffffu); else __syncwarp(0xffff0000u);"
    found = reports(WARP % half, lambda: {"out": torch.zeros(32)}, block=32)
    assert {report.kind for report in found} == {"race"}


def test_two_writes_are_a_race_and_atomics_are_not():
    source = 'extern "C" __global__ void kernel(int* out) { %s; }'
    found = reports(source % "out[0] = threadIdx.x", lambda: {"out": torch.zeros(1, dtype=torch.int32)})
    assert {report.kind for report in found} == {"race"}
    assert {report.argument for report in found} == {"out"}
    found = reports(source % "out[0] += 1", lambda: {"out": torch.zeros(1, dtype=torch.int32)}, block=1, grid=3)
    assert "block" in found[0].text
    for mode in ("fast", "check"):
        out = torch.zeros(1, dtype=torch.int32)
        launch(source % "atomicAdd(out, 1)", mode, 3, {"out": out}, grid=3)
        assert int(out) == 3 * 64


def test_an_atomic_beside_an_ordinary_access_is_a_race():
    source = """
extern "C" __global__ void kernel(int* out) {
  if (threadIdx.x == 0) out[0] = 5; else atomicAdd(out, 1);
}
"""
    assert {report.kind for report in reports(source, lambda: {"out": torch.zeros(1, dtype=torch.int32)})} == {"race"}


@pytest.mark.parametrize("access", ["out[threadIdx.x + 1] = 1.0f", "out[0] = out[(int)threadIdx.x - 1]"])
def test_an_overrun_of_global_memory_names_the_argument(access):
    source = f'extern "C" __global__ void kernel(float* other, float* out) {{ {access}; }}'
    memory = torch.zeros(300)
    # A view in the middle of a larger tensor: what lies around it belongs to somebody else.
    found = reports(source, lambda: {"other": memory[:4], "out": memory[100:164]}, block=64)
    overruns = [report for report in found if report.kind == "overrun"]
    assert overruns
    assert overruns[0].argument == "out"
    assert overruns[0].offset in (-4, 256)
    assert torch.equal(memory[164:], torch.zeros(136))


def test_an_overrun_of_shared_memory_is_seen_in_both_modes():
    source = """
extern "C" __global__ void kernel(float* out) {
  __shared__ float values[32];
  float* pointer = values;
  pointer[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}
"""
    found = reports(source, lambda: {"out": torch.zeros(32)}, block=32)
    assert any(report.kind == "overrun" and report.where == "planted.cu:5" for report in found)
    with pytest.raises(KernelError, match="overrun"):
        launch(source, "fast", 0, {"out": torch.zeros(32)}, block=32)


def test_an_index_beyond_an_array_is_seen():
    source = """
extern "C" __global__ void kernel(float* out) {
  __shared__ float values[4][8];
  values[threadIdx.x / 8][threadIdx.x % 8 + 1] = 0.0f;
  out[threadIdx.x] = values[threadIdx.x / 8][threadIdx.x % 8];
}
"""
    found = reports(source, lambda: {"out": torch.zeros(32)}, block=32)
    assert any(report.kind == "overrun" and report.where == "planted.cu:4" for report in found)


def test_dynamic_shared_memory_has_the_size_of_the_launch():
    source = """
extern "C" __global__ void kernel(float* out) {
  extern __shared__ float values[];
  values[threadIdx.x] = 2.0f;
  __syncthreads();
  out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}
"""
    for mode in ("fast", "check"):
        out = torch.zeros(64)
        launch(source, mode, 2, {"out": out}, shared=256)
        assert torch.equal(out, torch.full((64,), 2.0))
    found = reports(source, lambda: {"out": torch.zeros(64)}, shared=252)
    assert any(report.kind == "overrun" for report in found)
    with pytest.raises(KernelError, match="none was asked for"):
        launch(source, "fast", 0, {"out": torch.zeros(64)})


def test_shared_memory_that_was_not_written_is_not_a_number():
    source = """
extern "C" __global__ void kernel(float* out) {
  __shared__ float values[64];
  if (blockIdx.x == 0) values[threadIdx.x] = 1.0f;
  out[blockIdx.x * 64 + threadIdx.x] = values[threadIdx.x];
}
"""
    out = torch.zeros(128)
    launch(source, "fast", 0, {"out": out}, grid=2)
    assert torch.equal(out[:64], torch.ones(64))
    assert out[64:].isnan().all()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("if (threadIdx.x < 10) __syncthreads();", "10 of 64 threads"),
        ("if (threadIdx.x < 32) {\n __syncthreads();\n } else {\n __syncthreads();\n }", "in lines 2 and 4"),
        ("if (threadIdx.x < 10) __syncwarp(); else __syncthreads();", "no thread can go on"),
        ("if (threadIdx.x < 10) __ballot_sync(0xffffffffu, 1); else __syncwarp();", "no thread can go on"),
        ("__syncwarp(2u);", "does not name it"),
    ],
)
def test_a_barrier_that_not_all_reach_is_seen(body, words):
    source = f'extern "C" __global__ void kernel(float* out) {{ {body} out[threadIdx.x] = 1.0f; }}'
    found = reports(source, lambda: {"out": torch.zeros(64)})
    assert any(report.kind == "divergent barrier" and words in report.text for report in found), found


def test_a_misaligned_access_is_seen():
    source = """
extern "C" __global__ void kernel(const float* x, float* out) {
  const float4 four = reinterpret_cast<const float4*>(x + 1)[0];
  out[threadIdx.x] = four.x;
}
"""
    found = reports(source, lambda: {"x": torch.zeros(8), "out": torch.zeros(1)}, block=1)
    assert found[0].kind == "misaligned"
    assert found[0].where == "planted.cu:3"


def test_a_shuffle_from_an_absent_lane_is_seen():
    body = "out[threadIdx.x] = threadIdx.x < 16 ? __shfl_sync(0xffffu, 1.0f, 20) : 0.0f;"
    source = f'extern "C" __global__ void kernel(float* out) {{ {body} }}'
    assert {report.kind for report in reports(source, lambda: {"out": torch.zeros(32)}, block=32)} == {"absent lane"}


INTRINSICS = """
extern "C" __global__ void kernel(int* out) {
  const unsigned all = 0xffffffffu;
  const int lane = threadIdx.x %% 32, row = threadIdx.x / 32 * 32;
  int* to = out + 9 * threadIdx.x;
  to[0] = __shfl_xor_sync(all, lane, 5);
  to[1] = __shfl_down_sync(all, lane, 3);
  to[2] = __shfl_up_sync(all, lane, 3);
  to[3] = __shfl_sync(all, lane, 7);
  to[4] = __popc(__ballot_sync(all, lane %% 3 == 0));
  to[5] = __any_sync(all, lane == 31) + 2 * __all_sync(all, lane < 31);
  to[6] = __reduce_add_sync(all, lane);
  to[7] = __reduce_max_sync(all, row + lane);
  to[8] = int(__shfl_xor_sync(all, 0.5 + lane, 1) * 2.0);
}
""".replace("%%", "%")


@pytest.mark.parametrize("mode", ["fast", "check"])
@pytest.mark.parametrize("seed", SEEDS)
def test_intrinsics_are_those_of_cuda(mode, seed):
    out = torch.zeros(64, 9, dtype=torch.int32)
    launch(INTRINSICS, mode, seed, {"out": out})
    lane = torch.arange(64) % 32
    expected = [lane ^ 5, torch.where(lane + 3 < 32, lane + 3, lane), torch.where(lane >= 3, lane - 3, lane)]
    expected += [torch.full((64,), value) for value in (7, 11, 1, 31 * 16)]
    expected += [torch.arange(64) // 32 * 32 + 31, 2 * (lane ^ 1) + 1]
    assert torch.equal(out, torch.stack(expected, 1).int())


@pytest.mark.parametrize(("kind", "dtype"), [("__half", torch.float16), ("__nv_bfloat16", torch.bfloat16)])
def test_narrow_numbers_are_those_of_torch(kind, dtype):
    narrow, wide = (
        ("__float2half_rn", "__half2float") if kind == "__half" else ("__float2bfloat16_rn", "__bfloat162float")
    )
    source = f"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void kernel(const float* x, {kind}* narrow, float* wide, int count) {{
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) {{
    narrow[i] = {narrow}(x[i]);
    wide[i] = {wide}(narrow[i]);
  }}
}}
"""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, generator=generator) * torch.logspace(-9, 5, 1000)
    x[:4] = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0])
    out, wide = torch.zeros(1000, dtype=dtype), torch.zeros(1000)
    launch(source, "fast", 0, {"x": x, "narrow": out, "wide": wide, "count": np.int32(1000)}, grid=16)
    assert torch.equal(out, x.to(dtype))
    assert torch.equal(wide, x.to(dtype).float())


def test_arguments_that_are_not_the_kernel_s_are_refused():
    source = 'extern "C" __global__ void __launch_bounds__(64) kernel(float* out, int count) { out[0] = count; }'
    assert signatures(source) == {"kernel": ["out", "count"]}
    with pytest.raises(TypeError, match="its parameters are"):
        launch(source, "fast", 0, {"count": np.int32(1), "out": torch.zeros(1)})
    with pytest.raises(TypeError, match="count has 8 bytes, the parameter 4"):
        launch(source, "fast", 0, {"out": torch.zeros(1), "count": np.int64(1)})
    with pytest.raises(TypeError, match="which no GPU launches"):
        launch(source, "fast", 0, {"out": torch.zeros(1), "count": np.int32(1)}, block=2048)


def test_a_source_that_does_not_compile_says_why():
    with pytest.raises(RuntimeError, match=r"planted\.cu:1"):
        HostModule("this is no source", "planted.cu")


def test_shared_declarations_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="one name each"):
        rewritten("__shared__ float a[2], b[2];")
