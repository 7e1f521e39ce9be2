#include "native/system/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "native/system/system_error.h"

namespace baton {
namespace {

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // One byte less than sun_path holds: the path ends in a zero.
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return Error{.code = "SOCKET_PATH_TOO_LONG",
                 .message = "The path of a socket does not fit into its address.",
                 .expected = "1 to " + std::to_string(sizeof(address.sun_path) - 1) + " bytes",
                 .found = std::to_string(path.size()) + " bytes: " + path,
                 .action = "Use a shorter folder, for example under /tmp.",
                 .driver_result = {}};
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<Descriptor> make_socket() {
  Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) return system_error(errno, "make a socket");
  return socket;
}

int connect_socket(int socket, const sockaddr_un& address) {
  return ::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ? 0 : errno;
}

int bind_socket(int socket, const sockaddr_un& address) {
  return ::bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ? 0 : errno;
}

// A socket file to which nobody listens any more.
bool is_left_over(const sockaddr_un& address) {
  struct stat status{};
  if (::lstat(address.sun_path, &status) != 0 || !S_ISSOCK(status.st_mode)) return false;
  const auto probe = make_socket();
  return probe && connect_socket(probe->get(), address) == ECONNREFUSED;
}

}  // namespace

Result<Descriptor> listen_at(const std::string& path) {
  BATON_ASSIGN(const sockaddr_un address, address_of(path));
  BATON_ASSIGN(Descriptor socket, make_socket());
  // The file that bind makes takes its mode from the socket: so there is no moment in which others may connect.
  if (::fchmod(socket.get(), 0600) != 0) return system_error(errno, "protect the socket " + path);
  int failed = bind_socket(socket.get(), address);
  if (failed == EADDRINUSE && is_left_over(address)) {
    ::unlink(path.c_str());
    failed = bind_socket(socket.get(), address);
  }
  if (failed == EADDRINUSE) {
    return Error{.code = "SOCKET_IN_USE",
                 .message = "Another process listens at " + path + ".",
                 .expected = "a path of our own",
                 .found = "a socket or file that is in use",
                 .action = "Wait for the other run, or use another folder.",
                 .driver_result = {}};
  }
  if (failed != 0) return system_error(failed, "listen at " + path);
  if (::listen(socket.get(), SOMAXCONN) != 0) return system_error(errno, "listen at " + path);
  return socket;
}

Result<Descriptor> connect_to(const std::string& path) {
  BATON_ASSIGN(const sockaddr_un address, address_of(path));
  BATON_ASSIGN(Descriptor socket, make_socket());
  // A Unix socket connects at once or not at all; EAGAIN means that the queue of the listener is full.
  if (const int failed = connect_socket(socket.get(), address); failed != 0) {
    return Error{.code = "CONNECT_FAILED",
                 .message = "Cannot connect to " + path + ".",
                 .expected = "a process that listens there",
                 .found = errno_name(failed),
                 .action = "See whether the controller runs.",
                 .driver_result = {}};
  }
  return socket;
}

Result<Peer> peer_of(int socket) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return system_error(errno, "ask who is at the other end");
  }
  return Peer{.pid = credentials.pid, .uid = credentials.uid, .gid = credentials.gid};
}

}  // namespace baton
