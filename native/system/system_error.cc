#include "native/system/system_error.h"

#include <cerrno>
#include <system_error>

namespace baton {

namespace {

struct ErrnoName {
  int number;
  const char* name;
};

// strerrorname_np would do, but is not in the C library of every supported distribution.
#define BATON_ERRNO(name) {name, #name}
constexpr ErrnoName kNames[] = {
    BATON_ERRNO(EPERM),        BATON_ERRNO(ENOENT),     BATON_ERRNO(ESRCH),        BATON_ERRNO(EINTR),
    BATON_ERRNO(EIO),          BATON_ERRNO(EBADF),      BATON_ERRNO(ECHILD),       BATON_ERRNO(EAGAIN),
    BATON_ERRNO(ENOMEM),       BATON_ERRNO(EACCES),     BATON_ERRNO(EFAULT),       BATON_ERRNO(EBUSY),
    BATON_ERRNO(EEXIST),       BATON_ERRNO(ENODEV),     BATON_ERRNO(ENOTDIR),      BATON_ERRNO(EISDIR),
    BATON_ERRNO(EINVAL),       BATON_ERRNO(ENFILE),     BATON_ERRNO(EMFILE),       BATON_ERRNO(EFBIG),
    BATON_ERRNO(ENOSPC),       BATON_ERRNO(EROFS),      BATON_ERRNO(EPIPE),        BATON_ERRNO(ENAMETOOLONG),
    BATON_ERRNO(ENOSYS),       BATON_ERRNO(ELOOP),      BATON_ERRNO(EOVERFLOW),    BATON_ERRNO(ENOTSOCK),
    BATON_ERRNO(EPROTOTYPE),   BATON_ERRNO(EADDRINUSE), BATON_ERRNO(ECONNABORTED), BATON_ERRNO(ECONNRESET),
    BATON_ERRNO(ENOBUFS),      BATON_ERRNO(ENOTCONN),   BATON_ERRNO(ETIMEDOUT),    BATON_ERRNO(ECONNREFUSED),
    BATON_ERRNO(ETOOMANYREFS), BATON_ERRNO(EPROTO),     BATON_ERRNO(ENOTSUP)};
#undef BATON_ERRNO

}  // namespace

std::string errno_name(int number) {
  for (const ErrnoName& known : kNames) {
    if (known.number == number) return known.name;
  }
  return "E" + std::to_string(number);
}

namespace {

std::string advice(int number) {
  switch (number) {
    case EMFILE:
      return "Raise the limit of open files (ulimit -n).";
    case ENFILE:
      return "Close programs, or raise fs.file-max.";
    case ENOMEM:
      return "Free memory on this machine.";
    case EACCES:
    case EPERM:
      return "Run as the user who owns it.";
    case ENOSPC:
      return "Free space on this file system.";
    default:
      return "";
  }
}

}  // namespace

Error system_error(int number, const std::string& what) {
  const std::string name = errno_name(number);
  return Error{.code = "SYSTEM_" + name,
               .message = "Cannot " + what + ": " + std::system_category().message(number) + ".",
               .expected = "the system call to succeed",
               .found = name,
               .action = advice(number),
               .driver_result = {}};
}

}  // namespace baton
