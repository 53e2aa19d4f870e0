// One step of a farthest-first traversal: the pick, every point's distance to it, the smaller of that and its distance to
// the picks before, and the farthest point of each block, from which the next step takes its pick. A warp works on a point.
//
// Distances are sums of squared differences in double: sums of float would pick others of nearly equal points, and the
// square's expansion cancels far from the origin. POINTS is the type of the points.
#include "values.cuh"

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Larger than every place.
constexpr long long kNowhere = 0x7fffffffffffffffLL;

struct Farthest {
  // Squared; -1 for a point that is picked.
  double near;
  long long place;

  // The lower place of two that are equally far.
  __device__ __forceinline__ void take(double other_near, long long other_place) {
    if (other_near < near || (other_near == near && other_place >= place)) return;
    near = other_near;
    place = other_place;
  }
};

// Of all threads, for all of them.
__device__ __forceinline__ Farthest of_block(Farthest own) {
  __shared__ double nears[kWarps];
  __shared__ long long places[kWarps];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const double near = __shfl_xor_sync(kAllLanes, own.near, step);
    const long long place = __shfl_xor_sync(kAllLanes, own.place, step);
    own.take(near, place);
  }
  if (threadIdx.x % 32 == 0) {
    nears[threadIdx.x / 32] = own.near;
    places[threadIdx.x / 32] = own.place;
  }
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) own.take(nears[warp], places[warp]);
  __syncthreads();
  return own;
}

// The pick is `forced`, or where that is -1 the farthest of what the step before left in `last_near` and `last_place`, one
// for each block. `pick` and `gain` get it and its distance, where there is memory for them.
extern "C" __global__ void __launch_bounds__(256, 4) farthest_first(
    const POINTS* points, long long rows, unsigned width, long long forced, const double* last_near,
    const long long* last_place, double* near, double* next_near, long long* next_place, long long* pick,
    double* gain) {
  const unsigned lane = threadIdx.x % 32;
  Farthest found = {-2.0, kNowhere};
  if (forced < 0)
    for (unsigned block = threadIdx.x; block < gridDim.x; block += kThreads)
      found.take(last_near[block], last_place[block]);
  const long long picked = forced < 0 ? of_block(found).place : forced;
  found = {-2.0, kNowhere};
#pragma unroll 1
  for (long long place = (long long)blockIdx.x * kWarps + threadIdx.x / 32; place < rows;
       place += (long long)gridDim.x * kWarps) {
    double distance = 0.0;
#pragma unroll 4
    for (unsigned feature = lane; feature < width; feature += 32) {
      const double apart = double(widen(points[place * width + feature])) - widen(points[picked * width + feature]);
      distance += apart * apart;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) distance += __shfl_xor_sync(kAllLanes, distance, step);
    if (lane > 0) continue;
    const double before = near[place];
    const double now = place == picked ? -1.0 : distance < before ? distance : before;
    if (place == picked && pick) {
      *pick = picked;
      *gain = sqrt(before);
    }
    near[place] = now;
    found.take(now, place);
  }
  found = of_block(found);
  if (threadIdx.x == 0) {
    next_near[blockIdx.x] = found.near;
    next_place[blockIdx.x] = found.place;
  }
}
