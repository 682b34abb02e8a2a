// A CUDA device for one thread of the CPU: thread blocks run one after another, the threads of a block as fibers.
//
// A fiber runs until it needs others: at a barrier, or at an instruction of its whole warp, whose last lane to come
// computes it for all. In between no other fiber runs, so the order of the lanes is ours to choose, and a kernel
// without races gives the same result in any. Kernels are compiled with GCC's instrumentation of memory accesses (that
// of its thread sanitizer) and of undefined behaviour; what it calls is here: bounds, alignment, races in shared
// memory.
#define SIMT_CONSTANT
#include "simt.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <utility>
#include <vector>

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {
namespace {

constexpr unsigned WARP = 32, MOST_THREADS = 1024, EVERY_LANE = 0xffffffffu;
constexpr size_t STACK = 256 << 10, STATIC_LIMIT = 48 << 10, DYNAMIC_LIMIT = 227 << 10;

enum State { READY, AT_STEP, AT_BARRIER, DONE };

struct Copy {  // a cp.async that has not landed
  uint32_t to;
  const char* from;
  unsigned bytes, kept, group;
};

// GCC's own setjmp keeps no more than the stack and frame pointers and a label: the compiler saves what else it needs.
// The jump must not be inlined where the place was marked.
using Place = void* [5];
[[noreturn]] __attribute__((noinline)) void jump(Place& place) { __builtin_longjmp(place, 1); }

struct Fiber {
  Place at;
  ucontext_t beginning;
  char* stack;
  bool alive;  // has begun, and waits inside of its loop
  State state;
  const char* waits_at;
  const void* waits_pc;
  uint3 index;
  unsigned number, group;  // group: of cp.async, the one that is being filled
  std::vector<Copy> copies;
};

struct Step {  // an instruction that lanes of a warp make together
  const char* name;
  unsigned mask, arrived;
  void* records[WARP];
};

struct Warp {
  Step steps[WARP];  // lanes of disjoint masks may be at different ones
  unsigned used;     // how many of them to look at
  uint64_t synced;   // the clock at its last __syncwarp
};

// The last access to a byte of shared memory: clock << 12 | readers << 10 | thread.
constexpr int CLOCK = 12;
constexpr uint64_t THREAD = 1023, LANES = 1 << 10, WARPS = 1 << 11, IN_FLIGHT = ~uint64_t(0) << CLOCK;
struct Shadow {
  uint64_t written, read;
};

struct Buffer {
  const char* begin;
  size_t bytes;
};

Fiber fibers[MOST_THREADS];
Warp warps[MOST_THREADS / WARP];
Fiber* current;
Place scheduler, failure;
const Kernel* kernel;
TVMFFIAny arguments[64];
unsigned threads, lanes_order[MOST_THREADS];
uint64_t now = 1, barrier_at = 1;  // the clock goes on at every barrier and __syncwarp
size_t static_bytes, dynamic_begin, dynamic_bytes;
alignas(1024) char dynamic_shared[DYNAMIC_LIMIT];
Shadow shadows[STATIC_LIMIT + 1024 + DYNAMIC_LIMIT];
Buffer buffers[64];
unsigned buffer_count;
int64_t chosen_order;
char message[4096];

// ---- errors ----------------------------------------------------------------------------------------------------

// Gives the launch up. `where`: a place in the kernel's machine code, or null.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(const void* where, const char* format, ...) {
  size_t used =
      snprintf(message, sizeof message, "%s, block (%u, %u, %u)", kernel->name, blockIdx.x, blockIdx.y, blockIdx.z);
  if (current)
    used += snprintf(message + used, sizeof message - used, ", thread (%u, %u, %u)", current->index.x, current->index.y,
                     current->index.z);
  used += snprintf(message + used, sizeof message - used, ": ");
  va_list rest;
  va_start(rest, format);
  used += vsnprintf(message + used, sizeof message - used, format, rest);
  va_end(rest);
  Dl_info found;
  if (where && used < sizeof message && dladdr(where, &found))
    snprintf(message + used, sizeof message - used, "\n@%s+%#zx", found.dli_fname,
             (const char*)where - (const char*)found.dli_fbase - 1);
  jump(failure);
}

void say_lanes(char* text, size_t size, unsigned mask) {
  size_t used = 0;
  for (unsigned i = 0; i < WARP && used < size; ++i) {
    if (!(mask >> i & 1)) continue;
    unsigned last = i;
    while (last + 1 < WARP && mask >> (last + 1) & 1) ++last;
    used += snprintf(text + used, size - used, last > i ? "%s%u-%u" : "%s%u", used ? "," : "", i, last);
    i = last;
  }
}

// ---- shared memory -----------------------------------------------------------------------------------------------

bool ordered(uint64_t tag, const Fiber& f) {  // before everything that f does from here on
  const uint64_t time = tag >> CLOCK;
  return time < barrier_at || (((tag & THREAD) ^ f.number) / WARP == 0 && time < warps[f.number / WARP].synced);
}

[[noreturn]] void race(const void* pc, size_t at, bool write, uint64_t tag, const char* before) {
  if (tag >= IN_FLIGHT)
    fail(pc, "%s byte %zu of shared memory, which a cp.async is still to write: wait for it first",
         write ? "writes" : "reads", at);
  const char* others = tag & (LANES | WARPS) ? " and others" : "";
  fail(pc, "%s byte %zu of shared memory, which thread %u%s %s with no barrier in between", write ? "writes" : "reads",
       at, unsigned(tag & THREAD), others, before);
}

void access_shared(const void* pc, size_t at, size_t bytes, bool write) {
  const Fiber& f = *current;
  const uint64_t tag = now << CLOCK | f.number;
  for (Shadow *s = shadows + at, *end = s + bytes; s < end; ++s) {
    if (s->written >> CLOCK >= barrier_at && (s->written & ~IN_FLIGHT) != f.number && !ordered(s->written, f))
      race(pc, s - shadows, write, s->written, "wrote");
    if (s->written >= IN_FLIGHT) race(pc, s - shadows, write, s->written, "wrote");
    const uint64_t read = s->read;
    if (read >> CLOCK < barrier_at || (read & ~IN_FLIGHT) == f.number) {
      if (!write) s->read = tag;
    } else if (write) {
      if (read & WARPS || !ordered(read, f)) race(pc, s - shadows, write, read, "read");
    } else {
      const bool same_warp = ((read & THREAD) ^ f.number) / WARP == 0;
      s->read = tag | (read & WARPS || !same_warp ? WARPS : ordered(read, f) ? 0 : LANES);
    }
    if (write) s->written = tag;
  }
}

bool in_window(size_t at, size_t bytes) {
  return at + bytes <= static_bytes || (at >= dynamic_begin && at + bytes <= dynamic_begin + dynamic_bytes);
}

char* in_memory(size_t at) { return at < static_bytes ? kernel->shared + at : dynamic_shared + (at - dynamic_begin); }

[[noreturn]] void outside(const void* pc, const char* pointer, size_t bytes, bool write) {
  const char* does = write ? "writes" : "reads";
  size_t best = 1 << 20;
  const Buffer* nearest = nullptr;
  for (const Buffer* b = buffers; b < buffers + buffer_count; ++b) {
    const char* end = b->begin + b->bytes;
    const size_t distance = pointer < b->begin ? b->begin - pointer : pointer < end ? 0 : pointer - end;
    if (distance < best) best = distance, nearest = b;
  }
  if (nearest)
    fail(pc, "%s %zu bytes at byte %td of a tensor of %zu bytes", does, bytes, pointer - nearest->begin,
         nearest->bytes);
  fail(pc, "%s %zu bytes outside of its tensors and of its shared memory", does, bytes);
}

// Any access of the kernel to memory.
void access(const void* pc, const void* pointer, size_t bytes, bool write, bool atomic = false) {
  if (!current) return;
  const char* p = static_cast<const char*>(pointer);
  if (size_t(p - current->stack) < STACK) return;
  if (size_t at = p - kernel->shared; at < static_bytes) {
    if (at + bytes > static_bytes)
      fail(pc, "%s beyond the %zu bytes of its static shared memory", write ? "writes" : "reads", static_bytes);
    if (!atomic) access_shared(pc, at, bytes, write);
    return;
  }
  if (size_t at = p - dynamic_shared; at < DYNAMIC_LIMIT) {
    if (at + bytes > dynamic_bytes)
      fail(pc, "%s byte %zu of the %zu bytes of its dynamic shared memory", write ? "writes" : "reads", at + bytes - 1,
           dynamic_bytes);
    if (!atomic) access_shared(pc, dynamic_begin + at, bytes, write);
    return;
  }
  for (const Buffer* b = buffers; b < buffers + buffer_count; ++b)
    if (p >= b->begin && p + bytes <= b->begin + b->bytes) return;
  if (size_t(p - reinterpret_cast<const char*>(arguments)) < sizeof arguments) return;
  if (buffer_count) outside(pc, p, bytes, write);
}

void aligned(const void* pc, const void* pointer, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes)
    fail(pc, "%s at an address that is not a multiple of %zu", what, bytes);
}

// ---- fibers --------------------------------------------------------------------------------------------------------

__attribute__((noinline)) void leave() {  // back to the scheduler, until it resumes this fiber
  if (!__builtin_setjmp(current->at)) jump(scheduler);
}

void live() {
  for (;;) {
    kernel->thread(arguments);
    current->state = DONE;
    leave();
  }
}

__attribute__((noinline)) void resume(Fiber& f) {
  current = &f;
  threadIdx = f.index;
  if (__builtin_setjmp(scheduler)) {
    current = nullptr;
    return;
  }
  if (f.alive) jump(f.at);
  f.alive = true;
  getcontext(&f.beginning);
  f.beginning.uc_stack.ss_sp = f.stack;
  f.beginning.uc_stack.ss_size = STACK - f.number % 128 * 576;  // tops that were alike would share a set of the cache
  f.beginning.uc_link = nullptr;
  makecontext(&f.beginning, live, 0);
  setcontext(&f.beginning);
}

unsigned existing_lanes(unsigned warp) {
  const unsigned count = threads - warp * WARP;
  return count >= WARP ? EVERY_LANE : (1u << count) - 1;
}

[[noreturn]] void stuck() {
  char text[3000];
  size_t used = 0;
  const void* pc = nullptr;
  for (unsigned w = 0; w * WARP < threads && used < sizeof text; ++w) {
    unsigned left = existing_lanes(w);
    while (left && used < sizeof text) {
      const Fiber& first = fibers[w * WARP + __builtin_ctz(left)];
      unsigned alike = 0;
      for (unsigned i = 0; i < WARP; ++i) {
        const Fiber& f = fibers[w * WARP + i];
        if (left >> i & 1 && f.state == first.state && (f.state != AT_STEP || !strcmp(f.waits_at, first.waits_at)))
          alike |= 1u << i;
      }
      char lanes[128];
      say_lanes(lanes, sizeof lanes, alike);
      const char* verb = first.state == DONE ? "have ended" : "wait at ";
      const char* what = first.state == DONE ? "" : first.state == AT_BARRIER ? "__syncthreads" : first.waits_at;
      used +=
          snprintf(text + used, sizeof text - used, "%swarp %u lanes %s %s%s", used ? "; " : "", w, lanes, verb, what);
      left &= ~alike;
      if (!pc && first.state != DONE) pc = first.waits_pc;
    }
  }
  fail(pc, "not all threads come: %s", text);
}

void run_block() {
  memset(dynamic_shared, 0xa5, dynamic_bytes);  // what was never written is not zero
  if (static_bytes) memset(kernel->shared, 0xa5, static_bytes);
  barrier_at = ++now;
  for (unsigned i = 0; i < threads; ++i) fibers[i].state = READY, fibers[i].group = 0;
  for (Warp& w : warps) w.used = 0, w.synced = 0;
  for (;;) {
    bool ran = false;
    unsigned waiting = 0, done = 0;
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& f = fibers[lanes_order[i]];
      if (f.state == READY) resume(f), ran = true;
      waiting += f.state == AT_BARRIER;
      done += f.state == DONE;
    }
    if (done == threads) break;
    if (waiting == threads) {
      barrier_at = ++now;
      for (unsigned i = 0; i < threads; ++i) fibers[i].state = READY;
    } else if (!ran) {
      stuck();
    }
  }
  for (unsigned i = 0; i < threads; ++i) {
    for (const Copy& c : fibers[i].copies) memset(shadows + c.to, 0, c.bytes * sizeof(Shadow));
    fibers[i].copies.clear();
  }
}

void arrange(std::vector<unsigned>& places, uint64_t& random) {
  const size_t n = places.size();
  for (size_t i = 0; i < n; ++i) places[i] = chosen_order < 0 ? n - 1 - i : i;
  if (chosen_order > 0)
    for (size_t i = n; i > 1; --i) {
      random ^= random << 13, random ^= random >> 7, random ^= random << 17;
      std::swap(places[i - 1], places[random % i]);
    }
}

void run_grid() {
  std::vector<unsigned> blocks(size_t(gridDim.x) * gridDim.y * gridDim.z), lanes(threads);
  uint64_t random = uint64_t(chosen_order) * 0x9e3779b97f4a7c15u + 1;
  arrange(blocks, random);
  for (unsigned block : blocks) {
    arrange(lanes, random);
    memcpy(lanes_order, lanes.data(), threads * sizeof(unsigned));
    blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
    run_block();
  }
}

void prepare_fibers() {
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& f = fibers[i];
    if (!f.stack) {
      void* stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (stack == MAP_FAILED) fail(nullptr, "no memory for the stacks of its threads");
      f.stack = static_cast<char*>(stack);
    }
    f.number = i;
    f.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
  }
}

void read_launch(const TVMFFIAny* values) {
  gridDim = blockDim = {1, 1, 1};
  blockIdx = {0, 0, 0};
  dynamic_bytes = 0;
  for (int i = 0; i < kernel->tags; ++i) {
    const char* tag = kernel->tag[i];
    const int64_t value = values[i].v_int64;
    const bool grid = !strncmp(tag, "blockIdx.", 9), block = !strncmp(tag, "threadIdx.", 10);
    if (!grid && !block) {
      dynamic_bytes = value;
      continue;
    }
    uint3& dims = grid ? gridDim : blockDim;
    const char axis = tag[grid ? 9 : 10];
    if (value < 1 || value > (grid ? axis == 'x' ? 2147483647 : 65535 : 1024))
      fail(nullptr, "is launched with %s = %lld", tag, (long long)value);
    (axis == 'x' ? dims.x : axis == 'y' ? dims.y : dims.z) = unsigned(value);
  }
  static_bytes = kernel->shared_end - kernel->shared;
  dynamic_begin = (static_bytes + 1023) / 1024 * 1024;
  if (size_t(blockDim.x) * blockDim.y * blockDim.z > MOST_THREADS)
    fail(nullptr, "is launched with more than %u threads", MOST_THREADS);
  threads = blockDim.x * blockDim.y * blockDim.z;
  if (static_bytes > STATIC_LIMIT)
    fail(nullptr, "has %zu bytes of static shared memory; %zu is the most", static_bytes, STATIC_LIMIT);
  if (static_bytes + dynamic_bytes > DYNAMIC_LIMIT)
    fail(nullptr, "has %zu bytes of shared memory; %zu is the most", static_bytes + dynamic_bytes, DYNAMIC_LIMIT);
}

// ---- what lanes do together ----------------------------------------------------------------------------------------

void step(const void* pc, const char* name, unsigned mask, void* record, void (*apply)(Step&)) {
  Fiber& f = *current;
  Warp& w = warps[f.number / WARP];
  const unsigned bit = 1u << f.number % WARP;
  if (!(mask & bit)) fail(pc, "comes to %s, whose mask %#x leaves its lane out", name, mask);
  unsigned at = 0, unused = w.used;
  for (; at < w.used; ++at) {
    const Step& s = w.steps[at];
    if (!s.arrived) unused = at;
    else if (s.mask == mask && (s.name == name || !strcmp(s.name, name))) break;
  }
  if (at == w.used) {  // the first lane to come
    at = unused;
    if (unused == w.used) ++w.used;
    w.steps[at] = {name, mask, 0, {}};
  }
  Step* const mine = w.steps + at;
  mine->records[f.number % WARP] = record;
  mine->arrived |= bit;
  if (mine->arrived != mask) {
    f.state = AT_STEP;
    f.waits_at = name;
    f.waits_pc = pc;
    leave();
    return;
  }
  apply(*mine);
  for (unsigned i = 0; i < WARP; ++i)
    if (mask >> i & 1) fibers[f.number / WARP * WARP + i].state = READY;
  mine->arrived = 0;
  while (w.used && !w.steps[w.used - 1].arrived) --w.used;
}

struct Exchange {
  uint64_t value, result;
  unsigned source;
  bool valid;
};

struct Gather {
  uint64_t value, *all;
};

struct Mma {
  bool a_signed, b_signed, saturate;
  uint32_t* d;
  const uint32_t *a, *b, *c;
};

struct Matrices {
  const void* pc;
  int count;
  bool transposed;
  uint32_t *d, address;
};

template <int BITS> void unpack(uint32_t word, bool is_signed, int16_t* to) {
  const int sign = is_signed ? 1 << (BITS - 1) : 0;
  for (int i = 0; i < 32 / BITS; ++i) to[i] = int16_t((int(word >> i * BITS & ((1u << BITS) - 1)) ^ sign) - sign);
}

// A register holds 32 / BITS elements along k, four lanes side by side a run of `run`; a lane's group is lane / 4.
// a: rows group (and group + 8: odd registers), the next run of k: registers from 2 on. b: column group, a register a
// run. c and d: rows as a, two columns from 2 (lane % 4).  (PTX ISA, "Matrix fragments for mma".)
template <int M, int K, int BITS> void multiply(Step& s) {
  constexpr int each = 32 / BITS, run = 4 * each, halves = M / 8;
  alignas(64) int16_t a[M][K], b[8][K];
  for (int lane = 0; lane < int(WARP); ++lane) {
    const Mma& mine = *static_cast<Mma*>(s.records[lane]);
    const int group = lane / 4, at = lane % 4 * each;
    for (int r = 0; r < K / run; ++r) {
      for (int half = 0; half < halves; ++half)
        unpack<BITS>(mine.a[r * halves + half], mine.a_signed, &a[half * 8 + group][r * run + at]);
      unpack<BITS>(mine.b[r], mine.b_signed, &b[group][r * run + at]);
    }
  }
  for (int row = 0; row < M; ++row) {
    for (int column = 0; column < 8; ++column) {
      int32_t sum = 0;  // 64 * 255 * 255 fits
      for (int k = 0; k < K; ++k) sum += a[row][k] * b[column][k];
      const Mma& mine = *static_cast<Mma*>(s.records[row % 8 * 4 + column / 2]);
      const int i = row / 8 * 2 + column % 2;
      int64_t total = int64_t(int32_t(mine.c[i])) + sum;
      if (mine.saturate) total = total > INT32_MAX ? INT32_MAX : total < INT32_MIN ? INT32_MIN : total;
      mine.d[i] = uint32_t(total);
    }
  }
}

void load_matrices(Step& s) {
  Matrices** of = reinterpret_cast<Matrices**>(s.records);
  Fiber* const last = current;
  const unsigned first = last->number / WARP * WARP;
  for (int i = 0; i < of[0]->count; ++i) {
    uint16_t matrix[8][8];
    for (unsigned row = 0; row < 8; ++row) {
      const unsigned lane = i * 8 + row;
      const size_t at = of[lane]->address;
      current = &fibers[first + lane];  // whose address, and fault, it is
      const void* pc = of[lane]->pc;
      if (!in_window(at, 16)) fail(pc, "%s reads 16 bytes at byte %zu, outside of its shared memory", s.name, at);
      aligned(pc, in_memory(at), 16, s.name);
      access_shared(pc, at, 16, false);
      memcpy(matrix[row], in_memory(at), 16);
    }
    for (unsigned lane = 0; lane < WARP; ++lane) {
      const unsigned row = lane / 4, column = lane % 4 * 2;
      const bool t = of[0]->transposed;
      const uint32_t low = t ? matrix[column][row] : matrix[row][column];
      const uint32_t high = t ? matrix[column + 1][row] : matrix[row][column + 1];
      of[lane]->d[i] = high << 16 | low;
    }
  }
  current = last;
}

void finish_copies(unsigned before) {
  Fiber& f = *current;
  size_t left = 0;
  for (const Copy& c : f.copies) {
    if (c.group >= before) {
      f.copies[left++] = c;
      continue;
    }
    memcpy(in_memory(c.to), c.from, c.kept);
    memset(in_memory(c.to) + c.kept, 0, c.bytes - c.kept);
    for (unsigned i = 0; i < c.bytes; ++i) shadows[c.to + i].written = now << CLOCK | f.number;
  }
  f.copies.resize(left);
}

}  // namespace

#define HERE __builtin_return_address(0)  // in the kernel, for a function that it calls

extern "C" {

int simt_launch(const Kernel* launched, const TVMFFIAny* values, int count) {
  kernel = launched;
  current = nullptr;
  if (__builtin_setjmp(failure)) {
    current = nullptr;
    for (Fiber& f : fibers) f.alive = false, f.copies.clear();
    memset(shadows, 0, sizeof shadows);
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", message);
    return -1;
  }
  if (count != kernel->arguments + kernel->tags)
    fail(nullptr, "takes %d arguments, was given %d", kernel->arguments + kernel->tags, count);
  if (kernel->arguments > int(sizeof arguments / sizeof *arguments))
    fail(nullptr, "has %d arguments", kernel->arguments);
  for (int i = 0; i < kernel->arguments; ++i) {
    arguments[i] = values[i];
    if (values[i].type_index == kTVMFFITensor) arguments[i].v_ptr = TVMFFITensorGetDLTensorPtr(values[i].v_obj)->data;
  }
  read_launch(values + kernel->arguments);
  prepare_fibers();
  run_grid();
  return 0;
}

void simt_settings(int64_t order, unsigned count, const char* const* begins, const size_t* bytes) {
  chosen_order = order;
  buffer_count = count;
  for (unsigned i = 0; i < count; ++i) buffers[i] = {begins[i], bytes[i]};
}

void simt_barrier() {
  current->state = AT_BARRIER;
  current->waits_pc = HERE;
  leave();
}

void simt_meet(unsigned mask) {
  const unsigned w = current->number / WARP;
  step(HERE, "__syncwarp", mask & existing_lanes(w), nullptr,
       [](Step&) { warps[current->number / WARP].synced = ++now; });
}

unsigned simt_active() {
  const unsigned w = current->number / WARP;
  unsigned active = 0;
  for (unsigned i = 0; i < WARP && w * WARP + i < threads; ++i)
    active |= unsigned(fibers[w * WARP + i].state != DONE) << i;
  return active;
}

uint64_t simt_exchange(const char* name, unsigned mask, uint64_t value, unsigned source, bool valid) {
  Exchange mine = {value, value, source, valid};
  step(HERE, name, mask & existing_lanes(current->number / WARP), &mine, [](Step& s) {
    for (unsigned lane = 0; lane < WARP; ++lane) {
      if (!(s.mask >> lane & 1)) continue;
      Exchange& e = *static_cast<Exchange*>(s.records[lane]);
      if (!e.valid) continue;
      if (e.source >= WARP || !(s.mask >> e.source & 1))
        fail(nullptr, "lane %u takes by %s from lane %u, which is not in the mask %#x", lane, s.name, e.source, s.mask);
      e.result = static_cast<Exchange*>(s.records[e.source])->value;
    }
  });
  return mine.result;
}

void simt_gather(const char* name, unsigned mask, uint64_t value, uint64_t* all) {
  Gather mine = {value, all};
  step(HERE, name, mask & existing_lanes(current->number / WARP), &mine, [](Step& s) {
    for (unsigned to = 0; to < WARP; ++to)
      for (unsigned from = 0; s.mask >> to & 1 && from < WARP; ++from)
        static_cast<Gather*>(s.records[to])->all[from] =
            s.mask >> from & 1 ? static_cast<Gather*>(s.records[from])->value : 0;
  });
}

uint32_t simt_window(const void* pointer) {
  const char* p = static_cast<const char*>(pointer);
  if (size_t at = p - dynamic_shared; at < DYNAMIC_LIMIT) return uint32_t(dynamic_begin + at);
  if (size_t at = p - kernel->shared; at < dynamic_begin) return uint32_t(at);
  return ~0u;  // an error of whoever uses it
}

char* simt_dynamic() { return dynamic_shared; }

void simt_mma(const char* name, int m, int k, int bits, bool a_signed, bool b_signed, bool saturate, uint32_t* d,
              const uint32_t* a, const uint32_t* b, const uint32_t* c) {
  Mma mine = {a_signed, b_signed, saturate, d, a, b, c};
  auto apply = multiply<8, 16, 8>;
  if (bits == 8 && m == 16) apply = k == 16 ? multiply<16, 16, 8> : multiply<16, 32, 8>;
  if (bits == 4) apply = m == 8 ? multiply<8, 32, 4> : k == 32 ? multiply<16, 32, 4> : multiply<16, 64, 4>;
  step(HERE, name, EVERY_LANE, &mine, apply);
}

void simt_ldmatrix(const char* name, int count, bool transposed, uint32_t* d, uint32_t address) {
  Matrices mine = {HERE, count, transposed, d, address};
  step(HERE, name, EVERY_LANE, &mine, load_matrices);
}

void simt_copy(uint32_t to, const void* from, unsigned bytes, unsigned kept) {
  const void* pc = HERE;
  if (kept > bytes) fail(pc, "cp.async of %u bytes is told to read %u", bytes, kept);
  if (!in_window(to, bytes)) fail(pc, "cp.async writes %u bytes at byte %u, outside of its shared memory", bytes, to);
  aligned(pc, in_memory(to), bytes, "cp.async writes");
  aligned(pc, from, bytes, "cp.async reads");
  if (kept) access(pc, from, kept, false);
  access_shared(pc, to, bytes, true);
  for (unsigned i = 0; i < bytes; ++i) shadows[to + i].written = IN_FLIGHT | current->number;
  current->copies.push_back({to, static_cast<const char*>(from), bytes, kept, current->group});
}

void simt_commit() { ++current->group; }

void simt_wait(unsigned groups) {
  const Fiber& f = *current;
  if (f.group > groups) finish_copies(f.group - groups);
}

void simt_atomic(const void* pointer, size_t bytes) {
  const void* pc = HERE;
  aligned(pc, pointer, bytes, "an atomic operation");
  access(pc, pointer, bytes, true, true);
}

// ---- what the compiler's instrumentation calls -------------------------------------------------------------------

#define SIMT_ACCESS(bytes)                                            \
  void __tsan_read##bytes(void* p) { access(HERE, p, bytes, false); } \
  void __tsan_write##bytes(void* p) { access(HERE, p, bytes, true); }
SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)
void __tsan_read_range(void* p, size_t bytes) { access(HERE, p, bytes, false); }
void __tsan_write_range(void* p, size_t bytes) { access(HERE, p, bytes, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

struct Type {
  uint16_t kind, info;
  char name[1];
};
struct Misaligned {
  const char* file;
  uint32_t line, column;
  const Type* type;
  unsigned char log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(Misaligned* what, void* pointer) {
  if (current)
    fail(HERE, "takes %p for the address of %s, which must be a multiple of %u", pointer, what->type->name,
         1u << what->log_alignment);
}
#define SIMT_UNDEFINED(name, text)         \
  void __ubsan_handle_##name(void*, ...) { \
    if (current) fail(HERE, text);         \
  }
SIMT_UNDEFINED(out_of_bounds, "indexes an array of its own beyond its end")
SIMT_UNDEFINED(shift_out_of_bounds, "shifts by less than 0 or by no less than the width")
SIMT_UNDEFINED(divrem_overflow, "divides by zero, or the least integer by -1")
SIMT_UNDEFINED(add_overflow, "overflows a signed integer in an addition")
SIMT_UNDEFINED(sub_overflow, "overflows a signed integer in a subtraction")
SIMT_UNDEFINED(mul_overflow, "overflows a signed integer in a multiplication")
SIMT_UNDEFINED(negate_overflow, "overflows a signed integer in a negation")

}  // extern "C"
}  // namespace simt
