// Segments of one process read by another, as descriptors over a Unix socket.
#include <fcntl.h>
#include <sys/socket.h>

#include "native/share/import.h"
#include "native/test/pool_support.h"

namespace baton::test {
namespace {

using pool::Pool;

void send_descriptor(int socket, int fd, uint64_t offset) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec part{&offset, sizeof(offset)};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  ASSERT_EQ(sendmsg(socket, &message, 0), static_cast<ssize_t>(sizeof(offset)));
}

int receive_descriptor(int socket, uint64_t& offset) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec part{&offset, sizeof(offset)};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  EXPECT_EQ(recvmsg(socket, &message, MSG_CMSG_CLOEXEC), static_cast<ssize_t>(sizeof(offset)));
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
  return fd;
}

// Two processes on the same stand-in GPUs, joined by a socket. Each is a child, so that neither has used the driver
// before. `second` gets the exit status it deserves; that of `first` counts too.
void in_two_processes(const std::function<void(int)>& first, const std::function<void(int)>& second,
                      int second_status = 0) {
  const int status = in_child([&] {
    int sockets[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
    const timeval deadline{20, 0};
    for (const int socket : sockets)
      setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof(deadline));
    fflush(nullptr);
    const pid_t child = fork();  // shares the table that in_child chose
    if (child == 0) {
      close(sockets[0]);
      second(sockets[1]);
      fflush(nullptr);
      _exit(::testing::Test::HasFailure() ? 1 : 0);
    }
    close(sockets[1]);
    first(sockets[0]);
    close(sockets[0]);
    int child_status = 0;
    waitpid(child, &child_status, 0);
    const int code = WIFSIGNALED(child_status) ? 128 + WTERMSIG(child_status) : WEXITSTATUS(child_status);
    EXPECT_EQ(code, second_status);
  });
  EXPECT_EQ(status, 0);
}

void say(int socket, char what) {
  ASSERT_EQ(send(socket, &what, 1, 0), 1);
}
char hear(int socket) {
  char what = 0;
  EXPECT_EQ(recv(socket, &what, 1, 0), 1);
  return what;
}

TEST(Import, AnotherProcessSeesTheSameBytesAtTheSameOffset) {
  in_two_processes(
      [](int socket) {
        auto pool = make_pool();
        allocate(*pool, 3 * kSegment);  // so that the segment is not the first
        const uint64_t block = allocate(*pool, kMiB);
        fill(block, kMiB, 5);
        const int fd = take(pool->export_segment(3));
        EXPECT_EQ(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
        send_descriptor(socket, fd, block - pool->base());
        close(fd);
        EXPECT_EQ(hear(socket), '1');
        fill(block, kMiB, 6);  // memory itself is shared, not a copy of it
        say(socket, '2');
        EXPECT_EQ(hear(socket), '3');
        // The import is closed, the descriptors too: a pause gives the memory back.
        const uint64_t free_before = free_device_bytes();
        BATON_EXPECT_OK(pool->pause({}));
        EXPECT_EQ(free_device_bytes(), free_before + 4 * kSegment);
        BATON_EXPECT_OK(pool->resume({}, true));
        EXPECT_TRUE(holds(block, kMiB, 6));
        // The other process saw a segment of before the pause; the new one can be exported again.
        close(take(pool->export_segment(3)));
      },
      [](int socket) {
        uint64_t offset = 0;
        const int32_t fd = receive_descriptor(socket, offset);
        const uint64_t segment = offset / kSegment;
        auto import = take(share::Import::open(*take(Gpu::get(0)), kSegment, {&segment, 1}, {&fd, 1}));
        close(fd);
        EXPECT_TRUE(holds(import->base() + offset, kMiB, 5));
        EXPECT_FALSE(is_readable(import->base()));  // only what was imported is mapped
        say(socket, '1');
        EXPECT_EQ(hear(socket), '2');
        EXPECT_TRUE(holds(import->base() + offset, kMiB, 6));
        const uint64_t address = import->base() + offset;
        BATON_EXPECT_OK(import->close());
        EXPECT_FALSE(is_readable(address));
        say(socket, '3');
      });
}

TEST(Import, IsReadOnly) {
  in_two_processes(
      [](int socket) {
        auto pool = make_pool();
        const uint64_t block = allocate(*pool, 100);
        fill(block, 100, 1);
        const int fd = take(pool->export_segment(0));
        send_descriptor(socket, fd, 0);
        close(fd);
        char end = 0;
        EXPECT_EQ(recv(socket, &end, 1, 0), 0);  // the other process is dead
        EXPECT_TRUE(holds(block, 100, 1));
      },
      [](int socket) {
        uint64_t offset = 0;
        const int32_t fd = receive_descriptor(socket, offset);
        auto import = take(share::Import::open(*take(Gpu::get(0)), kSegment, {&offset, 1}, {&fd, 1}));
        EXPECT_TRUE(holds(import->base(), 100, 1));
        signal(SIGSEGV, SIG_DFL);
        *reinterpret_cast<volatile uint8_t*>(import->base()) = 1;
      },
      128 + SIGSEGV);
}

// A worker of another GPU reads a rank's partition over NVLink: the same call with another device.
TEST(Import, ByAnotherGpu) {
  in_two_processes(
      [](int socket) {
        auto pool = make_pool();
        fill(allocate(*pool, kMiB), kMiB, 3);
        const int fd = take(pool->export_segment(0));
        send_descriptor(socket, fd, 0);
        close(fd);
        EXPECT_EQ(hear(socket), '1');
      },
      [](int socket) {
        uint64_t offset = 0;
        const int32_t fd = receive_descriptor(socket, offset);
        auto import = take(share::Import::open(*take(Gpu::get(1)), kSegment, {&offset, 1}, {&fd, 1}));
        close(fd);
        const Gpu& gpu = *take(Gpu::get(1));
        const CurrentContext current(gpu);
        std::vector<uint8_t> found(kMiB);
        BATON_EXPECT_OK(gpu.driver().cuMemcpyDtoH(found.data(), import->base(), kMiB));
        EXPECT_EQ(found, pattern(3, kMiB));
        say(socket, '1');
      });
}

TEST(Import, WithoutALinkBetweenTheGpusTheErrorNamesBoth) {
  in_two_processes(
      [](int socket) {
        auto pool = make_pool();
        allocate(*pool, kMiB);
        const int fd = take(pool->export_segment(0));
        send_descriptor(socket, fd, 0);
        close(fd);
        EXPECT_EQ(hear(socket), '1');
      },
      [](int socket) {
        setenv("BATON_STANDIN_PEERS", "none", 1);
        uint64_t offset = 0;
        const int32_t fd = receive_descriptor(socket, offset);
        const auto refused = share::Import::open(*take(Gpu::get(1)), kSegment, {&offset, 1}, {&fd, 1});
        ASSERT_EQ(code_of(refused), "NO_PEER_ACCESS");
        EXPECT_EQ(refused.error().message, "GPU 1 cannot read the memory of GPU 0.");
        // On its own GPU nothing is in the way.
        BATON_EXPECT_OK(share::Import::open(*take(Gpu::get(0)), kSegment, {&offset, 1}, {&fd, 1}));
        close(fd);
        say(socket, '1');
      });
}

TEST(Import, WrongArgumentsAreErrors) {
  EXPECT_EQ(in_child([] {
              const Gpu& gpu = *take(Gpu::get(0));
              const uint64_t segments[] = {0, 1};
              const MemoryFile not_memory(kSegment);
              const int32_t fds[] = {not_memory.fd(), -1};
              EXPECT_EQ(code_of(share::Import::open(gpu, kSegment, {segments, 0}, {fds, 0})), "INVALID_ARGUMENT");
              EXPECT_EQ(code_of(share::Import::open(gpu, kSegment, {segments, 2}, {fds, 1})), "INVALID_ARGUMENT");
              EXPECT_NE(code_of(share::Import::open(gpu, kSegment, {segments, 2}, {fds, 2})), "OK");
              auto pool = make_pool(0);
              EXPECT_EQ(code_of(pool->export_segment(0)), "SEGMENT_NOT_MAPPED");
              pool::Options closed;
              closed.exportable = false;
              EXPECT_EQ(code_of(take(Pool::create(closed))->export_segment(0)), "NOT_EXPORTABLE");
            }),
            0);
}

// The same segment twice, or a failure half way: what was mapped is let go.
TEST(Import, AFailureLeavesNothingMapped) {
  EXPECT_EQ(in_child([] {
              auto pool = make_pool();
              allocate(*pool, 2 * kSegment);
              const int32_t fds[] = {take(pool->export_segment(0)), take(pool->export_segment(1))};
              const uint64_t same[] = {4, 4};
              EXPECT_NE(code_of(share::Import::open(*take(Gpu::get(0)), kSegment, same, fds)), "OK");
              close(fds[0]);
              close(fds[1]);
              const uint64_t free_before = free_device_bytes();
              BATON_EXPECT_OK(pool->pause({}));
              EXPECT_EQ(free_device_bytes(), free_before + 2 * kSegment);
            }),
            0);
}

}  // namespace
}  // namespace baton::test
