#include "native/probe/round_trip.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>
#include <vector>

#include "native/probe/json.h"
#include "native/probe/probes.h"
#include "native/share/import.h"
#include "native/system/descriptor.h"
#include "native/system/processes.h"

namespace baton::probe {
namespace {

constexpr int kReaderDeadlineMs = 15'000;

// No two words alike, and no run of bytes that a fresh or a zeroed page could have.
std::vector<uint32_t> pattern(uint64_t bytes, uint32_t seed) {
  std::vector<uint32_t> words(bytes / sizeof(uint32_t));
  for (size_t i = 0; i < words.size(); ++i)
    words[i] = (static_cast<uint32_t>(i) * 2654435761U) ^ seed;
  return words;
}

Error reader_failed(std::string found) {
  return Error{.code = "READER_FAILED",
               .message = "Another process could not read exported GPU memory.",
               .expected = "the bytes that were written",
               .found = std::move(found),
               .action = "",
               .driver_result = {}};
}

// The words are made before the fork: a child of a process with threads may only call what is safe in a signal handler.
pid_t start_reader(const std::vector<std::string>& words, int descriptor, int errors) {
  std::vector<char*> arguments;
  for (const std::string& word : words)
    arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::fcntl(descriptor, F_SETFD, 0);
  ::dup2(errors, STDOUT_FILENO);
  ::execv("/proc/self/exe", arguments.data());
  ::_exit(127);
}

std::string read_all(int fd) {
  std::string text;
  std::array<char, 4096> part{};
  for (ssize_t got; (got = ::read(fd, part.data(), part.size())) > 0;)
    text.append(part.data(), static_cast<size_t>(got));
  return text;
}

// Ends the reader in any case. It writes less than a pipe holds, so it can be waited for first.
Status wait_for(pid_t reader, int errors) {
  const auto handle = open_process(reader);
  pollfd ended{.fd = handle ? handle->pidfd.get() : -1, .events = POLLIN, .revents = 0};
  const bool in_time = handle && ::poll(&ended, 1, kReaderDeadlineMs) == 1;
  if (!in_time) ::kill(reader, SIGKILL);
  int status = 0;
  while (::waitpid(reader, &status, 0) < 0 && errno == EINTR) {
  }
  if (!in_time) return reader_failed("no answer within " + std::to_string(kReaderDeadlineMs / 1000) + " s");
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  if (WIFSIGNALED(status)) return reader_failed("it was ended by signal " + std::to_string(WTERMSIG(status)));
  const std::string said = read_all(errors);
  return reader_failed(said.empty() ? "exit status " + std::to_string(WEXITSTATUS(status)) : said);
}

Status read_elsewhere(int32_t reader, int descriptor, uint64_t bytes, uint32_t seed) {
  int pipe[2];
  if (::pipe2(pipe, O_CLOEXEC) != 0) return reader_failed(std::string("no pipe: ") + std::strerror(errno));
  const Descriptor read_end(pipe[0]);
  Descriptor write_end(pipe[1]);
  const pid_t child = start_reader({"baton-probe", "import", std::to_string(reader), std::to_string(descriptor),
                                    std::to_string(bytes), std::to_string(seed)},
                                   descriptor, write_end.get());
  if (child < 0) return reader_failed(std::string("no process: ") + std::strerror(errno));
  write_end.reset();
  return wait_for(child, read_end.get());
}

// Everything between making the memory and letting it go.
Status use(const Gpu& gpu, int32_t reader, cuda::DevicePointer address, cuda::AllocationHandle handle,
           RoundTrip& trip) {
  const cuda::CudaDriver& driver = gpu.driver();
  const auto seed = static_cast<uint32_t>(::getpid()) * 2246822519U;
  trip.stage = "map";
  BATON_TRY(driver.cuMemMap(address, trip.bytes, 0, handle, 0));
  const auto body = [&]() -> Status {
    const cuda::AccessDescriptor access = gpu.access(cuda::kAccessReadWrite);
    BATON_TRY(driver.cuMemSetAccess(address, trip.bytes, &access, 1));
    trip.stage = "write";
    const std::vector<uint32_t> words = pattern(trip.bytes, seed);
    BATON_TRY(driver.cuMemcpyHtoD(address, words.data(), trip.bytes));
    BATON_TRY(driver.cuCtxSynchronize());
    trip.stage = "export";
    int exported = -1;
    BATON_TRY(driver.cuMemExportToShareableHandle(&exported, handle, cuda::kHandlePosixFileDescriptor, 0));
    const Descriptor descriptor(exported);
    ::fcntl(exported, F_SETFD, FD_CLOEXEC);
    trip.stage = "import";
    return read_elsewhere(reader, exported, trip.bytes, seed);
  };
  Status done = body();
  const Status unmapped = driver.cuMemUnmap(address, trip.bytes);
  if (done && !unmapped) trip.stage = "unmap";
  return done ? unmapped : done;
}

Status run(const Gpu& gpu, int32_t reader, RoundTrip& trip) {
  const cuda::CudaDriver& driver = gpu.driver();
  const CurrentContext current(gpu);
  BATON_TRY(current.status());
  trip.stage = "create";
  BATON_ASSIGN(trip.bytes, gpu.granularity_bytes());
  cuda::DevicePointer address = 0;
  BATON_TRY(driver.cuMemAddressReserve(&address, trip.bytes, 0, 0, 0));
  const cuda::AllocationProperties properties = gpu.allocation(true);
  cuda::AllocationHandle handle = 0;
  Status status = driver.cuMemCreate(&handle, trip.bytes, &properties, 0);
  if (status) {
    status = use(gpu, reader, address, handle, trip);
    const Status released = driver.cuMemRelease(handle);
    if (status && !released) {
      trip.stage = "release";
      status = released;
    }
  }
  const Status freed = driver.cuMemAddressFree(address, trip.bytes);
  return status ? freed : status;
}

}  // namespace

RoundTrip round_trip(const Gpu& gpu, int32_t reader) {
  RoundTrip trip;
  trip.status = run(gpu, reader, trip);
  if (trip.status) trip.stage = "release";
  return trip;
}

int import_and_compare(int32_t ordinal, int32_t fd, uint64_t bytes, uint32_t seed) {
  const auto compare = [&]() -> Status {
    BATON_ASSIGN(const Gpu* gpu, Gpu::get(ordinal));
    const uint64_t segment = 0;
    BATON_ASSIGN(const auto import, share::Import::open(*gpu, bytes, {&segment, 1}, {&fd, 1}));
    const CurrentContext current(*gpu);
    BATON_TRY(current.status());
    std::vector<uint32_t> found(bytes / sizeof(uint32_t));
    BATON_TRY(gpu->driver().cuMemcpyDtoH(found.data(), import->base(), bytes));
    if (found != pattern(bytes, seed)) return reader_failed("other bytes than were written");
    return import->close();
  };
  const Status status = compare();
  if (!status) std::printf("%s %s", status.error().message.c_str(), status.error().found.c_str());
  return status ? 0 : 1;
}

}  // namespace baton::probe
