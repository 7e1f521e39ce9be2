// The C ABI of libbaton: what Python (ctypes) and the PyTorch allocator shim see of the native core.
//
// Every function that can fail returns a baton_status: 0 on success, a negative value otherwise. What went
// wrong is then in baton_last_error() of the same thread, as JSON:
//   {"code": "...", "message": "...", "expected": "...", "found": "...", "action": "..."}
// Sizes and offsets are bytes unless a name says otherwise; addresses are device addresses (on a stand-in GPU
// they are addresses of this process). A value that is not known is BATON_UNKNOWN, never 0.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define BATON_API __attribute__((visibility("default")))
#define BATON_UNKNOWN UINT64_MAX

typedef int32_t baton_status;

BATON_API const char* baton_version(void);
BATON_API const char* baton_last_error(void);

// ---- driver --------------------------------------------------------------------------------------------

typedef struct {
  int32_t available;       // 1 when libcuda could be opened and initialised
  int32_t simulated;       // 1 when it is this repository's stand-in
  int32_t driver_version;  // as cuDriverGetVersion, 0 when not available
  int32_t device_count;
  char path[512];    // the library that was opened
  char reason[512];  // why not, when not available
} baton_driver_info;

BATON_API baton_status baton_driver_probe(baton_driver_info* out);
// GPUs of the node as NVML counts them: all of them, whatever CUDA_VISIBLE_DEVICES says, and CUDA stays untouched.
BATON_API baton_status baton_gpu_count(uint32_t* out);
BATON_API baton_status baton_device_memory(int32_t device, uint64_t* free_bytes, uint64_t* total_bytes);

// ---- pool ----------------------------------------------------------------------------------------------
// One pool is one reserved address range. Physical memory is mapped into it in segments of one fixed size:
// segment i, when present, is mapped at base + i * segment_bytes. Blocks may span neighbouring segments.

typedef struct baton_pool baton_pool;

typedef struct {
  int32_t device;
  int32_t exportable;      // 1: segments can be exported as file descriptors
  uint64_t segment_bytes;  // 0: the allocation granularity (2 MiB); else a multiple of it
  uint64_t reserve_bytes;  // address space; 0: twice the device's memory
  char name[32];           // for errors and reports
} baton_pool_options;

typedef struct {
  uint64_t base;  // first address of the range
  uint64_t reserve_bytes;
  uint64_t segment_bytes;
  uint64_t segments;  // segments that exist, mapped or paused
  uint64_t mapped_segments;
  uint64_t mapped_bytes;
  uint64_t live_bytes;  // bytes in blocks handed out
  uint64_t live_blocks;
  uint64_t arena_bytes;  // of the arena that are brought in; 0: none is set
  uint64_t arena_used_bytes;
  uint64_t pending_bytes;  // bytes of an asynchronous resume that have not come back yet
} baton_pool_stats;

typedef struct {
  uint64_t address;
  uint64_t bytes;
} baton_range;

// What the bytes of a declared range are worth. Undeclared live bytes are BATON_SAVED.
enum {
  BATON_SAVED = 0,    // copied to the arena at every pause
  BATON_FROZEN = 1,   // copied once; a later change is an error (checked by checksum)
  BATON_ZERO = 2,     // not saved; comes back as zeros
  BATON_DISCARD = 3,  // not saved; content undefined when it comes back
};

BATON_API baton_status baton_pool_create(const baton_pool_options* options, baton_pool** out);
// Unmaps and releases everything. Addresses handed out are invalid afterwards.
BATON_API baton_status baton_pool_destroy(baton_pool* pool);
BATON_API baton_status baton_pool_info(baton_pool* pool, baton_pool_stats* out);

// The block starts at a multiple of 512, or of `alignment` (a power of two) when that is more; live bytes are the
// bytes asked for. While the pool is paused, new blocks go to segments that are mapped, or new. Errors: OUT_OF_MEMORY
// (device, wanted, free, total), OUT_OF_ADDRESS_SPACE.
BATON_API baton_status baton_pool_allocate(baton_pool* pool, uint64_t bytes, uint64_t alignment, uint64_t* address);
BATON_API baton_status baton_pool_free(baton_pool* pool, uint64_t address);
// 1 when the address lies in the pool's reserved range, mapped or not.
BATON_API int32_t baton_pool_owns(const baton_pool* pool, uint64_t address);
// Live blocks in address order. *count is how many there are, also when capacity is smaller.
BATON_API baton_status baton_pool_blocks(baton_pool* pool, baton_range* out, uint64_t capacity, uint64_t* count);
// Releases segments in which no block lives. *released: bytes.
BATON_API baton_status baton_pool_trim(baton_pool* pool, uint64_t* released);

// Replaces all earlier declarations of `kind`. Where kinds overlap, the first in the order above wins. Freeing a block
// ends what was declared about it.
BATON_API baton_status baton_pool_declare(baton_pool* pool, int32_t kind, const baton_range* ranges, uint64_t count);
// How often frozen ranges are verified by checksum as they come back: at every resume while the count of resumes is <=
// first_n (2 when this is not called); always when first_n is UINT64_MAX. A pause always verifies those that it
// releases, since what was written on them would be lost. Error FROZEN_CHANGED.
BATON_API baton_status baton_pool_verify_frozen(baton_pool* pool, uint64_t first_n);

// The host memory that a paused pool lives in: `bytes` of a memfd at `offset`, mapped, brought in and registered once.
// The descriptor is duplicated. Without an arena a pause that has something to save fails (NO_ARENA).
BATON_API baton_status baton_pool_set_arena(baton_pool* pool, int fd, uint64_t offset, uint64_t bytes);
// The same, of up to `capacity` bytes, with nothing brought in yet: by baton_pool_grow_arena, beside everything else
// that the pool does, and for the rest by the pause that needs it. The memfd grows with it.
BATON_API baton_status baton_pool_open_arena(baton_pool* pool, int fd, uint64_t offset, uint64_t capacity);
BATON_API baton_status baton_pool_grow_arena(baton_pool* pool, uint64_t bytes);

// Frozen contents that are alike in several processes are saved once for all of them, in a memfd that each opens:
// `bytes` of it, mapped, brought in and registered. One process writes a piece; then each, the writer too, adopts it:
// the range has the file's bytes afterwards (padding included), and a pause takes it for saved as long as it stays
// declared frozen. Whether contents are alike is the caller's to find out before.
typedef struct {
  uint64_t address;
  uint64_t bytes;
  uint64_t offset;  // in the file
} baton_shared_piece;
BATON_API baton_status baton_pool_open_shared(baton_pool* pool, int fd, uint64_t bytes);
BATON_API baton_status baton_pool_write_shared(baton_pool* pool, const baton_shared_piece* pieces, uint64_t count);
BATON_API baton_status baton_pool_adopt_shared(baton_pool* pool, const baton_shared_piece* pieces, uint64_t count);

typedef struct {
  uint64_t released_bytes;  // physical memory given back
  uint64_t saved_bytes;     // copied to the arena now
  uint64_t clean_bytes;     // frozen and already saved
  uint64_t dead_bytes;      // released without saving: zero, discard, no live block
  uint64_t kept_bytes;      // still mapped
  uint64_t copy_ns;
  uint64_t total_ns;
  uint64_t simulated_ns;  // the model's time for the copies on a stand-in; BATON_UNKNOWN on a real GPU
} baton_pause_report;

// Releases mapped segments that touch none of the `keep` ranges, the cheapest to bring back first, until
// want_bytes are released (UINT64_MAX: all of them). `live` are the live ranges, of which only what lies in blocks
// counts; NULL: the pool's own blocks. A segment without a block is released for good. Waits for a background resume.
// Blocks that straddle into a kept segment are saved only where their segment goes. May be called again to
// release more. On failure nothing has changed.
BATON_API baton_status baton_pool_pause(baton_pool* pool, const baton_range* live, uint64_t live_count,
                                        const baton_range* keep, uint64_t keep_count, uint64_t want_bytes,
                                        baton_pause_report* report);
// Releases all segments and forgets their content (an engine's sleep level 2). Addresses stay reserved.
BATON_API baton_status baton_pool_discard(baton_pool* pool, baton_pause_report* report);

typedef struct {
  uint64_t mapped_bytes;
  uint64_t copied_bytes;
  uint64_t pending_bytes;   // still to come when the call returned
  uint64_t verified_bytes;  // frozen bytes whose checksum was compared
  uint64_t copy_ns;
  uint64_t total_ns;
  uint64_t simulated_ns;
} baton_resume_report;

// Maps everything back, except for segments in which nothing but `leave` was live when they were paused: those stay
// away until a later call. Segments that touch `first` are back when the call returns; the others too when wait is 1,
// else a background thread brings them back in address order, each through an alias mapping: its own address is mapped
// when its bytes are there, so a reader that is too early faults.
BATON_API baton_status baton_pool_resume(baton_pool* pool, const baton_range* first, uint64_t first_count,
                                         const baton_range* leave, uint64_t leave_count, int32_t wait,
                                         baton_resume_report* report);
// Waits for a background resume. deadline_ms 0: only looks. Error DEADLINE when it is not done by then.
BATON_API baton_status baton_pool_wait(baton_pool* pool, uint64_t deadline_ms, baton_resume_report* report);

// ---- segments between processes --------------------------------------------------------------------------

// The caller owns the descriptor (close-on-exec) and closes it at once: an open one holds the memory.
BATON_API baton_status baton_pool_export(baton_pool* pool, uint64_t segment, int32_t* fd);

typedef struct baton_import baton_import;
// Maps segments of another process's pool, read-only, at base + segments[i] * segment_bytes of a fresh range.
BATON_API baton_status baton_import_open(int32_t device, uint64_t segment_bytes, const uint64_t* segments,
                                         const int32_t* fds, uint64_t count, baton_import** out, uint64_t* base);
BATON_API baton_status baton_import_close(baton_import* import);

// ---- copies ----------------------------------------------------------------------------------------------

enum {
  BATON_PLAIN = 0,    // bytes as they are
  BATON_ROUNDED = 1,  // float32 elements become bfloat16: to the nearest, ties to even
};

typedef struct {
  uint32_t slot;        // index into the table of source bases given at execution
  uint32_t conversion;  // BATON_PLAIN or BATON_ROUNDED
  uint64_t src_offset;  // bytes from that base
  uint64_t dst;         // address
  uint64_t bytes;       // that are written
} baton_run;

typedef struct {
  uint64_t bytes;
  uint64_t runs;
  uint64_t total_ns;
  uint64_t simulated_ns;
} baton_copy_report;

typedef struct baton_copy_plan baton_copy_plan;
// Any alignment and length, but of whole elements where they are rounded; runs are split and sorted as the device
// likes. The plan can be executed many times.
BATON_API baton_status baton_copy_plan_create(int32_t device, const baton_run* runs, uint64_t count,
                                              baton_copy_plan** out);
BATON_API baton_status baton_copy_plan_execute(baton_copy_plan* plan, const uint64_t* bases, uint64_t slots,
                                               baton_copy_report* report);
BATON_API baton_status baton_copy_plan_destroy(baton_copy_plan* plan);

// Has the driver translate the kernels for this GPU now (some tenths of a second) rather than at their first use.
BATON_API baton_status baton_kernels_load(int32_t device);

// Layout-invariant checksum of pieces of named tensors. For each item, sums over its elements
//   h(first_element + k, value_k)   (mod 2^64), h as in native/copy/checksum.h,
// into sums[item.group]. Summed over the pieces of a tensor it is the tensor's checksum, whoever holds them.
// indices_only: value_k counts as 0; tells which elements are covered, and how often.
typedef struct {
  uint64_t address;
  uint64_t first_element;
  uint64_t elements;
  uint16_t element_bytes;  // 1, 2, 4 or 8
  uint16_t conversion;     // BATON_ROUNDED: of float32 elements the bfloat16 that they become counts
  uint32_t group;
} baton_checksum_item;
BATON_API baton_status baton_checksum(int32_t device, const baton_checksum_item* items, uint64_t count,
                                      int32_t indices_only, uint64_t* sums, uint64_t groups);

// ---- PyTorch on CUDA -----------------------------------------------------------------------------------

// Makes `pool` the one that the two functions below serve. Once per process: SECOND_TRAINING_MEMORY. The pool must
// outlive every block.
BATON_API baton_status baton_torch_cuda_install(baton_pool* pool);
// For torch.cuda.memory.CUDAPluggableAllocator, in its signatures (the last argument is a cudaStream_t). Null when
// memory is out; baton_last_error() says why. Freeing waits for the device, as cudaFree does.
BATON_API void* baton_torch_cuda_malloc(ssize_t bytes, int device, void* stream);
BATON_API void baton_torch_cuda_free(void* block, ssize_t bytes, int device, void* stream);

// ---- life ------------------------------------------------------------------------------------------------

// Starts a native thread that ends this process (SIGKILL to itself, so no handler and no lock can delay it)
// when the process `pid` with that start time (field 22 of /proc/pid/stat) is gone. Once per process.
BATON_API baton_status baton_watchdog_start(int32_t pid, uint64_t start_time);

#if defined(__cplusplus)
}
#endif
