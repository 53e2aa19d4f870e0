// How a block works on pairs of rows and points: 32 rows beside one tile of 64 points after another, four by four of the
// pairs to a thread.
#include "values.cuh"

constexpr int kRows = 32;
constexpr int kPoints = 64;
constexpr int kFeatures = 32;
// Rows of a thread, and points or features beside them.
constexpr int kQuad = 4;
constexpr int kAcross = kPoints / kQuad;
constexpr int kThreads = kRows / kQuad * kAcross;

// Features first to measure, points first to sum; one more than is used, so that neither way fills one bank of memory.
typedef float Tile[kFeatures][kPoints + 1];
typedef float RowTile[kFeatures][kRows + 1];
typedef float PairTile[kPoints][kRows + 1];
typedef float Quads[kQuad][kQuad];

// The first of the thread's points or features, which are kAcross apart, and of its rows.
__device__ __forceinline__ unsigned across() { return threadIdx.x % kAcross; }
__device__ __forceinline__ unsigned down() { return threadIdx.x / kAcross * kQuad; }
