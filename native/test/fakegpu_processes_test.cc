// Stand-in GPUs shared by processes: one limit, and memory that goes back exactly, however its holders end.
// This program itself only looks through NVML; every client is a forked child with a driver of its own.
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <numeric>
#include <random>
#include <thread>

#include "native/test/fakegpu_support.h"

namespace baton::test {
namespace {

const auto* const table = ::testing::AddGlobalTestEnvironment(new StandinTable);

class Processes : public ::testing::Test {
 protected:
  void SetUp() override { nvml = take(nvml::Nvml::open(kNvmlLibrary)); }
  void TearDown() override {
    EXPECT_EQ(used_soon(0, 0), 0U);
    EXPECT_EQ(used_soon(1, 0), 0U);
  }
  uint64_t used(uint32_t device) const { return used_bytes(*nvml, device); }
  // By pid; the processes that NVML lists for a device.
  std::map<uint32_t, uint64_t> users(uint32_t device) const {
    std::map<uint32_t, uint64_t> users;
    for (const auto& process : take(nvml->processes(device)))
      users[process.pid] = process.used_bytes.value();
    return users;
  }
  // Waits until `device` has `bytes` in use; what it has when that takes longer than a second.
  uint64_t used_soon(uint32_t device, uint64_t bytes) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    while (used(device) != bytes && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return used(device);
  }

  std::unique_ptr<const nvml::Nvml> nvml;
};

// A client that holds `pieces` pieces of a device until it is told to go.
Child holder(int device, uint64_t pieces) {
  return Child([=](int socket) {
    Client client;
    cuda::AllocationHandle handle = 0;
    say(socket, client.create(device, pieces * kPiece, &handle) == cuda::kSuccess ? 'y' : 'n');
    if (Child::hear(socket) == 'r') client.cuda.cuMemRelease.raw(handle);
  });
}

TEST_F(Processes, ShareOneLimit) {
  const uint64_t all = kDeviceBytes / kPiece;
  const Child first = holder(0, all - 4);
  ASSERT_EQ(first.hear(), 'y');
  const Child too_much = holder(0, 5);
  EXPECT_EQ(too_much.hear(), 'n');
  const Child fits = holder(0, 4);
  EXPECT_EQ(fits.hear(), 'y');
  EXPECT_EQ(used(0), kDeviceBytes);
  const std::map<uint32_t, uint64_t> expected{{first.pid(), (all - 4) * kPiece}, {fits.pid(), 4 * kPiece}};
  EXPECT_EQ(users(0), expected);
}

TEST_F(Processes, ReleasedMemoryIsAtOnceThereForOthers) {
  Child first = holder(0, kDeviceBytes / kPiece);
  ASSERT_EQ(first.hear(), 'y');
  first.say('r');
  first.reap();
  const Child second = holder(0, kDeviceBytes / kPiece);
  EXPECT_EQ(second.hear(), 'y');
}

TEST_F(Processes, ZombiesHoldNothing) {
  Child first = holder(0, kDeviceBytes / kPiece);
  ASSERT_EQ(first.hear(), 'y');
  first.kill();
  first.wait_for_end();  // and is not reaped
  EXPECT_EQ(used(0), 0U);
  const Child second = holder(0, kDeviceBytes / kPiece);
  EXPECT_EQ(second.hear(), 'y');
  EXPECT_EQ(users(0).count(first.pid()), 0U);
}

TEST_F(Processes, AnImporterHoldsWhatItsMakerGaveUp) {
  std::array<int, 2> pair{};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair.data()), 0);
  Child maker([&](int socket) {
    Client client;
    cuda::AllocationHandle handle = 0;
    if (client.create(0, kPiece, &handle) != cuda::kSuccess) _exit(3);
    char* memory = client.map(handle, kPiece);
    std::strcpy(memory, "from the maker");
    const int fd = client.export_fd(handle);
    send_fd(pair[0], fd);
    close(fd);
    say(socket, 'y');
    Child::hear(socket);
  });
  Child importer([&](int socket) {
    Client client;
    const int fd = receive_fd(pair[1]);
    cuda::AllocationHandle handle = 0;
    if (client.import_fd(fd, &handle) != cuda::kSuccess) _exit(3);
    close(fd);
    const char* memory = client.map(handle, kPiece, cuda::kAccessRead);
    client.cuda.cuMemRelease.raw(handle);
    say(socket, std::strcmp(memory, "from the maker") == 0 ? 'y' : 'n');
    Child::hear(socket);
    _exit(std::strcmp(memory, "from the maker") == 0 ? 0 : 1);
  });
  close(pair[0]);
  close(pair[1]);
  ASSERT_EQ(maker.hear(), 'y');
  ASSERT_EQ(importer.hear(), 'y');
  EXPECT_EQ(used(0), kPiece) << "one memory, however many hold it";
  const std::map<uint32_t, uint64_t> both{{maker.pid(), kPiece}, {importer.pid(), kPiece}};
  EXPECT_EQ(users(0), both);
  maker.kill();
  maker.reap();
  EXPECT_EQ(used(0), kPiece) << "the importer has it still";
  importer.say('?');
  EXPECT_EQ(importer.reap(), 0);
  EXPECT_EQ(used_soon(0, 0), 0U);
}

// What a controller must not do: keep a descriptor that it was given to forward.
TEST_F(Processes, AnOpenDescriptorHoldsMemoryAsOnARealGpu) {
  Child maker([&](int socket) {
    Client client;
    cuda::AllocationHandle handle = 0;
    if (client.create(1, kPiece, &handle) != cuda::kSuccess) _exit(3);
    const int fd = client.export_fd(handle);
    if ((fcntl(fd, F_GETFD) & FD_CLOEXEC) == 0) _exit(4);
    send_fd(socket, fd);
    close(fd);
    Child::hear(socket);
    client.cuda.cuMemRelease.raw(handle);
    say(socket, 'r');
    Child::hear(socket);
  });
  const int kept = receive_fd(maker.socket());
  ASSERT_GE(kept, 0);
  maker.say('g');
  ASSERT_EQ(maker.hear(), 'r');
  EXPECT_EQ(used(1), kPiece) << "released, and yet held by a descriptor";
  EXPECT_TRUE(users(1).empty());
  // Only the descriptor is left, and it is enough to get at the memory again.
  Child importer([&](int socket) {
    Client client;
    cuda::AllocationHandle handle = 0;
    say(socket, client.import_fd(kept, &handle) == cuda::kSuccess ? 'y' : 'n');
    Child::hear(socket);
  });
  EXPECT_EQ(importer.hear(), 'y');
  EXPECT_EQ(used(1), kPiece);
  importer.kill();
  importer.reap();
  maker.kill();
  maker.reap();
  EXPECT_EQ(used(1), kPiece);
  close(kept);
  EXPECT_EQ(used_soon(1, 0), 0U);
}

TEST_F(Processes, AnyOtherDescriptorIsNoMemory) {
  const Ended ended = run({}, [] {
    Client client;
    cuda::AllocationHandle handle = 0;
    const int other = memfd_create("something else", MFD_CLOEXEC);
    EXPECT_EQ(client.import_fd(other, &handle), cuda::kInvalidValue);
    EXPECT_EQ(client.import_fd(-1, &handle), cuda::kInvalidValue);
  });
  EXPECT_EQ(ended.status, 0) << ended.stderr_text;
}

// Whether this process has memory of a stand-in GPU mapped or open.
bool has_standin_memory() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("baton-standin-gpu") != std::string::npos) return true;
  }
  for (int fd = 0; fd < 1024; ++fd) {
    std::array<char, 128> target{};
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    if (readlink(link.c_str(), target.data(), target.size() - 1) <= 0) continue;
    if (std::strstr(target.data(), "baton-standin-gpu") != nullptr) return true;
  }
  return false;
}

TEST_F(Processes, AForkedChildKeepsNothingAndCannotUseTheGpu) {
  Child parent([&](int socket) {
    Client client;
    client.use(0);
    cuda::AllocationHandle handle = 0;
    if (client.create(0, kPiece, &handle) != cuda::kSuccess) _exit(3);
    char* memory = client.map(handle, kPiece);
    memory[0] = 1;
    if (!has_standin_memory()) _exit(4);
    const pid_t child = fork();
    if (child == 0) {
      int count = 0;
      const bool refused = client.cuda.cuDeviceGetCount.raw(&count) == cuda::kNotInitialized &&
                           client.cuda.cuInit.raw(0) == cuda::kNotInitialized;
      say(socket, refused && !has_standin_memory() ? 'y' : 'n');
      Child::hear(socket);
      signal(SIGSEGV, SIG_DFL);
      *static_cast<volatile char*>(memory) = 2;  // not there: the parent's mappings are not inherited
      _exit(0);
    }
    client.unmap(memory, kPiece);
    client.cuda.cuMemRelease.raw(handle);
    client.cuda.cuDevicePrimaryCtxRelease.raw(0);
    say(socket, 'r');
    int status = 0;
    waitpid(child, &status, 0);
    _exit(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV ? 0 : 1);
  });
  const char one = parent.hear();
  const char other = parent.hear();
  EXPECT_TRUE((one == 'y' && other == 'r') || (one == 'r' && other == 'y')) << one << other;
  EXPECT_EQ(used(0), 0U) << "the child lives on, and holds nothing";
  parent.say('g');
  EXPECT_EQ(parent.reap(), 0);
}

TEST_F(Processes, AStoppedProcessIsNoObstacle) {
  Child stopped = holder(0, 4);
  ASSERT_EQ(stopped.hear(), 'y');
  stopped.kill(SIGSTOP);
  const Child other = holder(0, kDeviceBytes / kPiece - 4);
  EXPECT_EQ(other.hear(), 'y');
  EXPECT_EQ(used(0), kDeviceBytes) << "stopped is not dead";
}

TEST_F(Processes, AnotherConfigurationOfTheSameTableIsAnError) {
  const Ended ended = run({{"BATON_STANDIN_BYTES", "1048576"}}, [] {
    const auto opened = cuda::CudaDriver::open(kCudaLibrary);
    ASSERT_FALSE(opened.ok());
    EXPECT_EQ(opened.error().code, "DRIVER_INIT_FAILED");
  });
  EXPECT_EQ(ended.status, 0) << ended.stderr_text;
  EXPECT_NE(ended.stderr_text.find("BATON_STANDIN_BYTES is 1048576, but the table"), std::string::npos)
      << ended.stderr_text;
}

TEST_F(Processes, WithoutATableThereAreNoGpus) {
  const Ended ended =
      run({{"BATON_STANDIN_TABLE", ""}}, [] { EXPECT_FALSE(cuda::CudaDriver::open(kCudaLibrary).ok()); });
  EXPECT_EQ(ended.status, 0);
  EXPECT_NE(ended.stderr_text.find("BATON_STANDIN_TABLE is not set"), std::string::npos) << ended.stderr_text;
}

// A client that allocates, maps, exports to its partner, imports from it and releases, at random, until it is
// killed. It never ends by itself.
[[noreturn]] void churn(int ready, int partner, uint32_t seed) {
  Client client;
  const auto& cuda = client.cuda;
  std::minstd_rand random(seed);
  struct Held {
    cuda::AllocationHandle handle;
    uint64_t address;
    uint64_t bytes;
  };
  std::vector<Held> held;
  client.use(static_cast<int>(seed % kDevices));
  say(ready, 'y');
  for (;;) {
    // All of a size: an importer need not be told how much it got.
    constexpr uint64_t bytes = kPiece;
    cuda::AllocationHandle handle = 0;
    bool got = false;
    if (random() % 3 == 0) {
      int fd = -1;
      // All that has come (the socket does not wait): what lies unread in it is held too.
      for (int next; (next = receive_fd(partner)) >= 0; fd = next) {
        if (fd >= 0) close(fd);
      }
      if (fd >= 0) {
        got = client.import_fd(fd, &handle) == cuda::kSuccess;
        close(fd);
      }
    } else {
      const cuda::Result result = client.create(static_cast<int>(random() % kDevices), bytes, &handle);
      if (result != cuda::kSuccess && result != cuda::kOutOfMemory) _exit(7);
      got = result == cuda::kSuccess;
      if (got && random() % 2 == 0) {
        const int fd = client.export_fd(handle);
        send_fd(partner, fd);
        close(fd);
      }
    }
    if (got) {
      const uint64_t address = client.reserve(bytes);
      if (cuda.cuMemMap.raw(address, bytes, 0, handle, 0) != cuda::kSuccess) _exit(8);
      if (client.set_access(address, bytes, 0, cuda::kAccessReadWrite) != cuda::kSuccess) _exit(9);
      *reinterpret_cast<volatile char*>(address) = 1;
      held.push_back({handle, address, bytes});
    }
    if (!held.empty() && (held.size() > 12 || !got || random() % 3 == 0)) {
      const size_t which = random() % held.size();
      const Held gone = held[which];
      held.erase(held.begin() + static_cast<ptrdiff_t>(which));
      cuda.cuMemUnmap.raw(gone.address, gone.bytes);
      cuda.cuMemAddressFree.raw(gone.address, gone.bytes);
      cuda.cuMemRelease.raw(gone.handle);
    }
    // What its expectations say must reach the parent: a child that is killed tells nothing.
    if (::testing::Test::HasFailure()) _exit(10);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
  }
}

TEST_F(Processes, AThousandKillsLeaveTotalsExactAndNeverAboveTheLimit) {
  constexpr int kKills = 1000;
  constexpr int kAtOnce = 8;
  const Child resident = holder(0, 3);
  ASSERT_EQ(resident.hear(), 'y');
  std::minstd_rand random(20261123);
  uint64_t peak_bytes = 0;
  uint64_t most_users = 0;
  const auto watch = [&] {
    for (uint32_t device = 0; device < kDevices; ++device) {
      const uint64_t bytes = used(device);
      EXPECT_LE(bytes, kDeviceBytes);
      peak_bytes = std::max(peak_bytes, bytes);
      most_users = std::max<uint64_t>(most_users, users(device).size());
    }
  };
  for (int killed = 0; killed < kKills; killed += kAtOnce) {
    std::vector<Child> children;
    for (int pair = 0; pair < kAtOnce / 2; ++pair) {
      std::array<int, 2> partners{};
      ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, partners.data()), 0);
      for (const int own : partners) {
        const uint32_t seed = random();
        children.emplace_back([=](int socket) { churn(socket, own, seed); });
      }
      close(partners[0]);
      close(partners[1]);
    }
    for (const Child& child : children)
      ASSERT_EQ(child.hear(), 'y');
    std::vector<size_t> order(children.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    // Half of each round as zombies, half reaped, so that both are met while others go on.
    for (const size_t next : order) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
      children[next].kill();
      watch();
      if (next % 2 == 0) {
        ASSERT_EQ(children[next].reap(), 128 + SIGKILL);
      }
    }
    for (const Child& child : children) {
      if (child.pid() > 0) child.wait_for_end();
    }
    ASSERT_EQ(used_soon(0, 3 * kPiece), 3 * kPiece) << "after " << killed + kAtOnce << " kills";
    ASSERT_EQ(used_soon(1, 0), 0U) << "after " << killed + kAtOnce << " kills";
    const std::map<uint32_t, uint64_t> only_resident{{static_cast<uint32_t>(resident.pid()), 3 * kPiece}};
    ASSERT_EQ(users(0), only_resident);
    for (Child& child : children)
      ASSERT_EQ(child.reap(), 128 + SIGKILL) << "a child ended by itself";
  }
  // Else nothing was put to the test.
  EXPECT_GT(peak_bytes, kDeviceBytes / 4);
  EXPECT_GE(most_users, 4U);
}

}  // namespace
}  // namespace baton::test
