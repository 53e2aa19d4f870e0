// Runs the kernels of one library: fibres, barriers, and in the checking mode a shadow of every byte of shared and
// global memory.
//
// What orders two accesses: the same thread; `__syncthreads` between them; `__syncwarp` between threads of a warp whose
// masks name both. Shuffles and ballots order nothing, as in CUDA's memory model. Nothing orders blocks. Two accesses of
// one byte that nothing orders are a race, unless both read or both are atomic.
//
// Two readers are remembered per byte since the last write: enough for every write that no reader is ordered with, not
// for one that is ordered with some of many. Not checked: memory order between blocks by flags, speed, occupancy.
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "include/cuda_host.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace cuda_host {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kGuardBytes = 64;
constexpr size_t kSharedLimit = 48 << 10;
constexpr int kMaxThreads = 1024;

// Switching between fibres.
#if defined(__x86_64__)
using Context = void*;
extern "C" void cuda_host_switch(Context* from, Context to);
asm(R"(
.text
.globl cuda_host_switch
.hidden cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_host_switch, .-cuda_host_switch
)");
Context make_context(char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;  // keeps the stack as a call would leave it: 16 bytes aligned before the return address
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  return top;
}
void switch_to(Context* from, Context* to) { cuda_host_switch(from, *to); }
#else
using Context = ucontext_t;
Context make_context(char* stack, void (*entry)()) {
  Context context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
  return context;
}
void switch_to(Context* from, Context* to) { swapcontext(from, to); }
#endif

enum class State { kRunnable, kWaits, kExited };

struct Thread {
  Context context;
  State state;
  Kind kind;
  unsigned mask;
  uint64_t value;
  Place place;
  uint64_t gathered[32];
  uint32_t clock[32];
};

struct Access {
  uint32_t block = 0;  // counted from 1; 0 is none
  uint32_t epoch = 0;
  uint32_t time = 0;
  uint16_t thread = 0;
  bool is_atomic = false;
  uintptr_t where = 0;
};

struct Cell {
  Access write;
  Access reads[2];
};

struct Region {
  uintptr_t begin;
  uintptr_t end;
  int argument;  // -1 for shared memory
  bool is_shared;
  std::vector<Cell> shadow;
};

struct Allocation {
  const void* key;
  size_t bytes;
  std::unique_ptr<char[]> memory;
  char* begin;
};

}  // namespace

// As the harness reads it.
struct Report {
  char kind[24];
  uint64_t where;  // offset in the library, or 0
  uint64_t other;
  char file[200];
  int32_t line;
  int32_t argument;
  int64_t offset;
  uint32_t block;
  uint32_t thread;
  uint32_t other_thread;
  char text[360];
};

struct Buffer {
  uint64_t address;
  uint64_t bytes;
};

namespace {

struct Launch {
  bool checks = false;
  bool stopped = false;
  uint64_t random = 0;
  int order = 0;
  void** arguments = nullptr;
  const Entry* entry = nullptr;
  Context scheduler;
  std::vector<Thread> threads;
  std::vector<int> runnable;
  int running = 0;
  int alive = 0;
  int at_barrier = 0;
  uint32_t block = 0;
  uint32_t epoch = 0;
  std::vector<Allocation> allocations;
  size_t shared_bytes = 0;
  size_t dynamic_bytes = 0;
  std::vector<Region> regions;
  Region* last_region = nullptr;
  Report* reports = nullptr;
  int capacity = 0;
  int count = 0;
};

Launch* launch = nullptr;
char* stacks = nullptr;
uintptr_t library_begin = 0, library_end = 0;

int find_library(dl_phdr_info* info, size_t, void*) {
  uintptr_t begin = UINTPTR_MAX, end = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
    const uintptr_t from = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
    begin = std::min(begin, from);
    end = std::max(end, from + info->dlpi_phdr[i].p_memsz);
  }
  const uintptr_t here = reinterpret_cast<uintptr_t>(&launch);
  if (here < begin || here >= end) return 0;
  library_begin = begin;
  library_end = end;
  return 1;
}

uint64_t offset_in_library(uintptr_t address) {
  return address >= library_begin && address < library_end ? address - library_begin : 0;
}

Report* report(const char* kind, uintptr_t where, uintptr_t other, Place place, const char* format, ...) {
  Launch& l = *launch;
  for (int i = 0; i < l.count; ++i) {
    const Report& r = l.reports[i];
    if (!std::strcmp(r.kind, kind) && r.where == offset_in_library(where) && r.line == place.line &&
        r.other == offset_in_library(other))
      return nullptr;
  }
  if (l.count == l.capacity) return nullptr;
  Report& r = l.reports[l.count++];
  std::memset(&r, 0, sizeof r);
  std::snprintf(r.kind, sizeof r.kind, "%s", kind);
  std::snprintf(r.file, sizeof r.file, "%s", place.file ? place.file : "");
  r.line = place.line;
  r.where = offset_in_library(where);
  r.other = offset_in_library(other);
  r.argument = -1;
  r.block = l.block - 1;
  r.thread = unsigned(l.running);
  va_list list;
  va_start(list, format);
  std::vsnprintf(r.text, sizeof r.text, format, list);
  va_end(list);
  return &r;
}

uint64_t next_random() {
  uint64_t& x = launch->random;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x;
}

void yield() { switch_to(&launch->threads[launch->running].context, &launch->scheduler); }

// Leaves the launch for good: what an access outside of every buffer would do is not to be known.
void stop() {
  launch->stopped = true;
  yield();
}

void run_kernel() {
  launch->entry->call(launch->arguments);
  Thread& self = launch->threads[launch->running];
  self.state = State::kExited;
  --launch->alive;
  yield();
  __builtin_trap();
}

unsigned lanes_of_warp(int warp) {
  unsigned lanes = 0;
  const int count = int(launch->threads.size());
  for (int lane = 0; lane < 32 && warp * 32 + lane < count; ++lane)
    if (launch->threads[warp * 32 + lane].state != State::kExited) lanes |= 1u << lane;
  return lanes;
}

// Lets the lanes go on if all that one of them waits for are there.
void try_rendezvous(int thread) {
  Launch& l = *launch;
  const int warp = thread / 32;
  const Thread& first = l.threads[thread];
  const unsigned members = first.mask & lanes_of_warp(warp);
  for (int lane = 0; lane < 32; ++lane) {
    if (!(members >> lane & 1u)) continue;
    const Thread& other = l.threads[warp * 32 + lane];
    const bool fits = other.state == State::kWaits && other.kind == first.kind && other.mask == first.mask &&
                      (!l.checks || other.place.line == first.place.line);
    if (!fits) return;
  }
  uint64_t values[32];
  std::memset(values, 0xff, sizeof values);
  uint32_t clock[32] = {};
  for (int lane = 0; lane < 32; ++lane) {
    if (!(members >> lane & 1u)) continue;
    const Thread& other = l.threads[warp * 32 + lane];
    values[lane] = other.value;
    for (int i = 0; i < 32; ++i) clock[i] = std::max(clock[i], other.clock[i]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (!(members >> lane & 1u)) continue;
    Thread& other = l.threads[warp * 32 + lane];
    std::memcpy(other.gathered, values, sizeof values);
    if (other.kind == kWarp) {
      std::memcpy(other.clock, clock, sizeof clock);
      ++other.clock[lane];
    }
    other.state = State::kRunnable;
    l.runnable.push_back(warp * 32 + lane);
  }
}

void reset_clocks() {
  for (size_t i = 0; i < launch->threads.size(); ++i) {
    std::memset(launch->threads[i].clock, 0, sizeof launch->threads[i].clock);
    launch->threads[i].clock[i % 32] = 1;
  }
}

void release_barrier() {
  Launch& l = *launch;
  const Thread* first = nullptr;
  for (const Thread& thread : l.threads) {
    if (thread.state != State::kWaits) continue;
    if (first && thread.place.line != first->place.line)
      report("divergent barrier", 0, 0, thread.place, "threads of one block wait at __syncthreads in lines %d and %d",
             first->place.line, thread.place.line);
    if (!first) first = &thread;
  }
  if (l.alive < int(l.threads.size()))
    report("divergent barrier", 0, 0, first->place, "%d of %d threads wait at __syncthreads; the others have returned",
           l.alive, int(l.threads.size()));
  l.at_barrier = 0;
  ++l.epoch;
  reset_clocks();
  for (size_t i = 0; i < l.threads.size(); ++i) {
    if (l.threads[i].state != State::kWaits) continue;
    l.threads[i].state = State::kRunnable;
    l.runnable.push_back(int(i));
  }
}

void report_deadlock() {
  static const char* const names[] = {"__syncthreads", "__syncwarp", "a shuffle", "a vote", "a reduction"};
  std::map<std::pair<int, std::pair<int, unsigned>>, int> waiting;
  Place place{};
  for (const Thread& thread : launch->threads) {
    if (thread.state != State::kWaits) continue;
    ++waiting[{thread.place.line, {int(thread.kind), thread.kind == kBlock ? 0u : thread.mask}}];
    place = thread.place;
  }
  std::string text = "no thread can go on:";
  for (const auto& [where, count] : waiting) {
    char part[100];
    std::snprintf(part, sizeof part, " %d at %s in line %d (mask %08x);", count, names[where.second.first], where.first,
                  where.second.second);
    text += part;
  }
  report("divergent barrier", 0, 0, place, "%s", text.c_str());
}

int pick() {
  std::vector<int>& runnable = launch->runnable;
  size_t index = 0;
  if (launch->order == 1) index = runnable.size() - 1;
  if (launch->order == 2) index = next_random() % runnable.size();
  const int thread = runnable[index];
  if (launch->order == 0) {
    runnable.erase(runnable.begin());
  } else {
    runnable[index] = runnable.back();
    runnable.pop_back();
  }
  return thread;
}

void fill_shared() {
  for (Allocation& a : launch->allocations) {
    std::memset(a.begin - kGuardBytes, 0xa5, a.bytes + 2 * kGuardBytes);
    // Not a number, so that what was never written shows.
    std::memset(a.begin, 0xff, a.bytes);
  }
  for (Region& region : launch->regions)
    if (region.is_shared) std::fill(region.shadow.begin(), region.shadow.end(), Cell{});
}

void check_guards() {
  for (const Allocation& a : launch->allocations)
    for (size_t i = 0; i < kGuardBytes; ++i)
      if (a.begin[-1 - ptrdiff_t(i)] != char(0xa5) || a.begin[a.bytes + i] != char(0xa5)) {
        report("overrun", 0, 0, Place{}, "a write beside a shared array of %zu bytes", a.bytes);
        break;
      }
}

void run_block() {
  Launch& l = *launch;
  ++l.block;
  l.epoch = 1;
  fill_shared();
  reset_clocks();
  l.runnable.clear();
  l.alive = int(l.threads.size());
  l.at_barrier = 0;
  for (size_t i = 0; i < l.threads.size(); ++i) {
    l.threads[i].context = make_context(stacks + i * kStackBytes, run_kernel);
    l.threads[i].state = State::kRunnable;
    l.runnable.push_back(int(i));
  }
  while (l.alive > 0 && !l.stopped) {
    if (l.runnable.empty()) {
      if (l.at_barrier != l.alive) {
        report_deadlock();
        l.stopped = true;
        return;
      }
      release_barrier();
    }
    l.running = pick();
    const unsigned t = unsigned(l.running);
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
    switch_to(&l.scheduler, &l.threads[l.running].context);
    if (l.threads[l.running].state == State::kExited) {
      // Lanes that waited for this one too need not any more.
      const int warp = l.running / 32;
      for (int lane = 0; lane < 32 && warp * 32 + lane < int(l.threads.size()); ++lane) {
        const Thread& other = l.threads[warp * 32 + lane];
        if (other.state == State::kWaits && other.kind != kBlock) try_rendezvous(warp * 32 + lane);
      }
    }
  }
  check_guards();
}

Region* find_region(uintptr_t address) {
  Launch& l = *launch;
  if (l.last_region && address >= l.last_region->begin && address < l.last_region->end) return l.last_region;
  for (Region& region : l.regions)
    if (address >= region.begin && address < region.end) return l.last_region = &region;
  return nullptr;
}

bool is_ordered(const Access& before, const Access& now) {
  if (before.block == 0) return true;
  if (before.block != now.block) return false;
  if (before.epoch != now.epoch || before.thread == now.thread) return true;
  if (before.thread / 32 != now.thread / 32) return false;
  return before.time <= launch->threads[now.thread].clock[before.thread % 32];
}

void race(const Access& before, const Access& now, const Region& region, int64_t offset, const char* what) {
  Report* r = report("race", now.where, before.where, Place{}, "%s of %s memory, thread %u of block %u and thread %u of block %u",
                     what, region.is_shared ? "shared" : "global", before.thread, before.block - 1, now.thread, now.block - 1);
  if (!r) return;
  r->argument = region.argument;
  r->offset = offset;
  r->other_thread = before.thread;
}

void outside(uintptr_t address, size_t bytes, bool is_write, uintptr_t where) {
  const char* what = is_write ? "write" : "read";
  const Region* near = nullptr;
  uint64_t best = UINT64_MAX;
  for (const Region& region : launch->regions) {
    const uint64_t distance = address < region.begin ? region.begin - address : address - region.begin;
    if (distance < best) {
      best = distance;
      near = &region;
    }
  }
  const int64_t offset = near ? int64_t(address) - int64_t(near->begin) : 0;
  const int64_t size = near ? int64_t(near->end - near->begin) : 0;
  Report* r = report("overrun", where, 0, Place{}, "a %s of %zu bytes at offset %lld of %s memory of %lld bytes", what,
                     bytes, static_cast<long long>(offset), near && near->is_shared ? "shared" : "global",
                     static_cast<long long>(size));
  if (r && near) {
    r->argument = near->argument;
    r->offset = offset;
  }
  stop();
}

void access(const void* pointer, size_t bytes, bool is_write, bool is_atomic, uintptr_t where) {
  if (!launch || !launch->checks) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  Region* region = find_region(address);
  if (!region) {
    const uintptr_t stack = reinterpret_cast<uintptr_t>(stacks) + size_t(launch->running) * kStackBytes;
    if (address >= stack && address + bytes <= stack + kStackBytes) return;
    if (address >= library_begin && address + bytes <= library_end && !is_write) return;
    outside(address, bytes, is_write, where);
    return;
  }
  if (address + bytes > region->end) {
    outside(address, bytes, is_write, where);
    return;
  }
  const Launch& l = *launch;
  Access now{l.block, l.epoch, l.threads[l.running].clock[l.running % 32], uint16_t(l.running), is_atomic, where};
  for (size_t i = 0; i < bytes; ++i) {
    const int64_t offset = int64_t(address - region->begin + i);
    Cell& cell = region->shadow[size_t(offset)];
    if (!(is_atomic && cell.write.is_atomic) && !is_ordered(cell.write, now))
      race(cell.write, now, *region, offset, is_write ? "two writes" : "a read after a write");
    if (is_write) {
      for (const Access& read : cell.reads)
        if (!is_ordered(read, now)) race(read, now, *region, offset, "a write after a read");
      cell.write = now;
      cell.reads[0] = cell.reads[1] = Access{};
    } else {
      const bool first = is_ordered(cell.reads[0], now) || cell.reads[0].thread == now.thread;
      cell.reads[first ? 0 : 1] = now;
    }
  }
}

}  // namespace

int lane() { return launch->running % 32; }

unsigned present_lanes(unsigned mask) { return mask & lanes_of_warp(launch->running / 32); }

void block_barrier(Place place) {
  Thread& self = launch->threads[launch->running];
  self.state = State::kWaits;
  self.kind = kBlock;
  self.place = place;
  ++launch->at_barrier;
  yield();
}

const uint64_t* rendezvous(Kind kind, unsigned mask, uint64_t value, Place place) {
  Thread& self = launch->threads[launch->running];
  if (!(mask >> lane() & 1u)) {
    report("divergent barrier", 0, 0, place, "lane %d waits with mask %08x, which does not name it", lane(), mask);
    stop();
  }
  self.state = State::kWaits;
  self.kind = kind;
  self.mask = mask;
  self.value = value;
  self.place = place;
  try_rendezvous(launch->running);
  yield();
  return self.gathered;
}

void absent_lane(Place place) {
  report("absent lane", 0, 0, place, "lane %d reads a lane that its mask does not name", lane());
}

void* shared_memory(const void* key, size_t bytes, size_t alignment) {
  Launch& l = *launch;
  for (const Allocation& a : l.allocations)
    if (a.key == key) return a.begin;
  Allocation a{key, bytes, std::make_unique<char[]>(bytes + 2 * kGuardBytes + alignment), nullptr};
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(a.memory.get()) + kGuardBytes + alignment - 1) & ~(alignment - 1);
  a.begin = reinterpret_cast<char*>(begin);
  std::memset(a.begin - kGuardBytes, 0xa5, bytes + 2 * kGuardBytes);
  std::memset(a.begin, 0xff, bytes);
  l.shared_bytes += bytes;
  if (l.shared_bytes > kSharedLimit)
    report("launch", 0, 0, Place{}, "%zu bytes of shared memory, of which a block has %zu", l.shared_bytes, kSharedLimit);
  l.regions.push_back(Region{begin, begin + bytes, -1, true, std::vector<Cell>(l.checks ? bytes : 0)});
  l.last_region = nullptr;
  l.allocations.push_back(std::move(a));
  return l.allocations.back().begin;
}

void* dynamic_shared_memory() {
  static const char key = 0;
  if (launch->dynamic_bytes == 0) {
    report("launch", 0, 0, Place{}, "dynamic shared memory is used, none was asked for");
    stop();
  }
  return shared_memory(&key, launch->dynamic_bytes, 16);
}

void atomic_access(const void* address, size_t bytes) {
  access(address, bytes, true, true, reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
}

// Runs a kernel; returns how many reports were written.
extern "C" int cuda_host_launch(const Entry* entry, const uint32_t* shape, void** arguments, uint64_t dynamic_bytes,
                                const Buffer* buffers, int buffer_count, uint64_t seed, int checks, Report* reports,
                                int capacity) {
  Launch here;
  launch = &here;
  if (!stacks) {
    stacks = static_cast<char*>(mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    dl_iterate_phdr(find_library, nullptr);
  }
  here.checks = checks != 0;
  here.entry = entry;
  here.arguments = arguments;
  here.dynamic_bytes = dynamic_bytes;
  here.reports = reports;
  here.capacity = capacity;
  here.random = seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
  here.order = seed < 2 ? int(seed) : 2;
  gridDim = dim3(shape[0], shape[1], shape[2]);
  blockDim = dim3(shape[3], shape[4], shape[5]);
  here.threads.resize(size_t(blockDim.x) * blockDim.y * blockDim.z);
  for (int i = 0; i < buffer_count; ++i) {
    const Buffer& b = buffers[i];
    here.regions.push_back(Region{b.address, b.address + b.bytes, i, false, std::vector<Cell>(checks ? b.bytes : 0)});
  }
  const uint64_t blocks = uint64_t(gridDim.x) * gridDim.y * gridDim.z;
  // A stride that has no factor in common with the number of blocks visits each once.
  uint64_t stride = here.order == 2 && blocks > 2 ? next_random() % (blocks - 1) + 1 : 1;
  while (here.order == 2 && std::__gcd(stride, blocks) != 1) ++stride;
  uint64_t block = here.order == 2 ? next_random() % blocks : 0;
  for (uint64_t i = 0; i < blocks && !here.stopped; ++i, block = (block + stride) % blocks) {
    const uint64_t index = here.order == 1 ? blocks - 1 - i : block;
    blockIdx = {unsigned(index % gridDim.x), unsigned(index / gridDim.x % gridDim.y),
                unsigned(index / (uint64_t(gridDim.x) * gridDim.y))};
    run_block();
  }
  launch = nullptr;
  return here.count;
}

// What the instrumentation calls before each access.
#define CUDA_HOST_HERE reinterpret_cast<uintptr_t>(__builtin_return_address(0))
#define CUDA_HOST_HOOKS(bytes)                                                                                    \
  extern "C" void __tsan_read##bytes(void* p) { access(p, bytes, false, false, CUDA_HOST_HERE); }                 \
  extern "C" void __tsan_write##bytes(void* p) { access(p, bytes, true, false, CUDA_HOST_HERE); }                 \
  extern "C" void __tsan_unaligned_read##bytes(void* p) { access(p, bytes, false, false, CUDA_HOST_HERE); }       \
  extern "C" void __tsan_unaligned_write##bytes(void* p) { access(p, bytes, true, false, CUDA_HOST_HERE); }       \
  extern "C" void __tsan_volatile_read##bytes(void* p) { access(p, bytes, false, false, CUDA_HOST_HERE); }        \
  extern "C" void __tsan_volatile_write##bytes(void* p) { access(p, bytes, true, false, CUDA_HOST_HERE); }
CUDA_HOST_HOOKS(1)
CUDA_HOST_HOOKS(2)
CUDA_HOST_HOOKS(4)
CUDA_HOST_HOOKS(8)
CUDA_HOST_HOOKS(16)
extern "C" void __tsan_read_range(void* p, size_t bytes) { access(p, bytes, false, false, CUDA_HOST_HERE); }
extern "C" void __tsan_write_range(void* p, size_t bytes) { access(p, bytes, true, false, CUDA_HOST_HERE); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}

struct SourceLocation {
  const char* file;
  uint32_t line;
  uint32_t column;
};
struct TypeMismatch {
  SourceLocation place;
  const void* type;
  unsigned char log_alignment;
  unsigned char kind;
};
struct OutOfBounds {
  SourceLocation place;
  const void* array_type;
  const void* index_type;
};
extern "C" void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t address) {
  if (!launch) return;
  report("misaligned", 0, 0, Place{data->place.file, int(data->place.line)},
         "an access that needs a multiple of %d bytes, at one that is %d beyond", 1 << data->log_alignment,
         int(address & ((uintptr_t(1) << data->log_alignment) - 1)));
  stop();
}
extern "C" void __ubsan_handle_out_of_bounds(OutOfBounds* data, uintptr_t index) {
  if (!launch) return;
  report("overrun", 0, 0, Place{data->place.file, int(data->place.line)}, "index %lld of an array that is shorter",
         static_cast<long long>(index));
  stop();
}

}  // namespace cuda_host
