// Unix stream sockets, non-blocking and close-on-exec.
#pragma once

#include <sys/types.h>

#include <string>

#include "native/driver/error.h"
#include "native/system/descriptor.h"

namespace baton {

// Who is at the other end, as the kernel recorded it when the connection was made.
struct Peer {
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
};

// A socket of mode 0600 that listens at `path`. What a dead process left there is replaced.
// SOCKET_PATH_TOO_LONG, SOCKET_IN_USE when somebody listens there, SYSTEM_*.
Result<Descriptor> listen_at(const std::string& path);

// CONNECT_FAILED, SOCKET_PATH_TOO_LONG, SYSTEM_*.
Result<Descriptor> connect_to(const std::string& path);

Result<Peer> peer_of(int socket);

}  // namespace baton
