/** The host: memory, limits, control groups, shared memory, the kernel. */
import { shortBytes } from "../report/figures.js";
import type { CgroupLevel, Facts, HostFacts } from "./facts.js";
import { type Finding, findingsOf } from "./finding.js";

const { ok, warning, problem, unknown } = findingsOf("host");

/** What DeepSpeed's collectives on the CPU take of /dev/shm for each rank; NCCL takes less. */
const SHARED_BYTES_A_RANK = 66 * 2 ** 20;
const USUAL_RANKS = 8;
/** A worker has a descriptor for each segment that it maps, up to 1024 a GPU; and a process opens files besides. */
const OPEN_FILES = 2048;
const FEWEST_OPEN_FILES = 256;

export function judgeHost({ host }: Pick<Facts, "host">): Finding[] {
  return [
    memory(host),
    cgroups(host),
    sharedMemory(host),
    ...leftFiles(host),
    openFiles(host),
    addressSpace(host),
    overcommit(host),
    pidfd(host),
    ...namespaces(host),
  ];
}

function memory({ memory: found }: HostFacts): Finding {
  if (found === null) return unknown("HOST_MEMORY", "The host's memory is not known.", "/proc/meminfo cannot be read");
  const { totalBytes, availableBytes } = found;
  return ok(
    "HOST_MEMORY",
    "The host's memory is known.",
    `${shortBytes(availableBytes)} of ${shortBytes(totalBytes)} available`,
  );
}

/** What a level of the control groups leaves, when it limits at all. */
function roomOf({ limitBytes, usedBytes, reclaimableBytes }: CgroupLevel): number | null {
  if (typeof limitBytes !== "number" || usedBytes === null) return null;
  return Math.max(0, limitBytes - usedBytes + (reclaimableBytes ?? 0));
}

/** Bytes of host memory that processes of a run can take: what the host has, and the control groups leave. */
export function availableHostBytes({
  memory: found,
  cgroups: levels,
}: Pick<HostFacts, "memory" | "cgroups">): number | null {
  const rooms = levels.map(roomOf).filter((room): room is number => room !== null);
  if (found !== null) rooms.push(found.availableBytes);
  return rooms.length === 0 ? null : Math.min(...rooms);
}

function cgroups({ cgroups: levels, memory: found }: HostFacts): Finding {
  if (levels.length === 0)
    return unknown("CGROUP_MEMORY", "The control groups' limits are not known.", "no memory controller is mounted");
  const tightest = levels.reduce<CgroupLevel | null>((least, level) => {
    const room = roomOf(level);
    const before = least === null ? null : roomOf(least);
    return room !== null && (before === null || room < before) ? level : least;
  }, null);
  const unread = levels.filter(({ limitBytes }) => limitBytes === null);
  if (tightest === null) {
    if (unread.length > 0) {
      return unknown(
        "CGROUP_MEMORY",
        "Not every control group's limit can be read.",
        unread.map(({ path }) => path).join(", "),
      );
    }
    return ok(
      "CGROUP_MEMORY",
      "No control group limits memory.",
      `${levels.length} levels, version ${levels[0]?.version}`,
    );
  }
  const room = roomOf(tightest) ?? 0;
  const words = `${shortBytes(tightest.limitBytes as number)} by ${tightest.path} (version ${tightest.version}), ${shortBytes(room)} of it left`;
  if (found !== null && room < found.availableBytes) {
    return warning("CGROUP_MEMORY", {
      message: "A control group limits memory below what the host has: arenas beyond it end in a kill by the kernel.",
      expected: "no limit, or one above the arenas and the processes (see --model)",
      found: words,
      action: "Raise memory.max of this group (docker: --memory; Slurm: --mem; Kubernetes: limits.memory).",
    });
  }
  return ok("CGROUP_MEMORY", "No control group limits memory below what the host has.", words);
}

function sharedMemory({ sharedMemory: found }: HostFacts): Finding {
  if (found === null) {
    return problem("SHARED_MEMORY", {
      message: "There is no /dev/shm.",
      expected: "a tmpfs at /dev/shm: NCCL, DeepSpeed and the stand-in GPUs put files there",
      found: "none",
      action: "mount -t tmpfs tmpfs /dev/shm (docker has one unless it is taken away)",
    });
  }
  const words = `${shortBytes(found.freeBytes)} of ${shortBytes(found.totalBytes)} free`;
  const wanted = SHARED_BYTES_A_RANK * USUAL_RANKS;
  if (found.freeBytes >= wanted) return ok("SHARED_MEMORY", "/dev/shm is large enough.", words);
  const action = "docker: --shm-size=8g (or --ipc=host); else: mount -o remount,size=8g /dev/shm";
  if (found.freeBytes < SHARED_BYTES_A_RANK) {
    return problem("SHARED_MEMORY", {
      message: "/dev/shm has no room for a single rank: processes die with SIGBUS, or NCCL fails to start.",
      expected: `at least ${shortBytes(SHARED_BYTES_A_RANK)} free for each rank`,
      found: words,
      action,
    });
  }
  return warning("SHARED_MEMORY", {
    message: `/dev/shm has no room for ${USUAL_RANKS} ranks.`,
    expected: `${shortBytes(SHARED_BYTES_A_RANK)} free for each rank (DeepSpeed on the CPU; NCCL takes less)`,
    found: words,
    action,
  });
}

function leftFiles({ sharedMemory: found }: HostFacts): Finding[] {
  if (found === null || found.left.length === 0) return [];
  const shown = found.left.slice(0, 5).join(", ");
  return [
    warning("LEFT_FILES", {
      message: "Runs that were killed have left files in /dev/shm that no process of yours uses.",
      expected: "none",
      found: found.left.length > 5 ? `${shown} and ${found.left.length - 5} more` : shown,
      action: `rm ${found.left
        .slice(0, 5)
        .map((name) => `/dev/shm/${name}`)
        .join(" ")}`,
    }),
  ];
}

function openFiles({ limits }: HostFacts): Finding {
  const limit = limits.openFiles;
  if (limit === null) return unknown("OPEN_FILES", "The limit of open files is not known.", "/proc/self/limits");
  if (limit === "unlimited" || limit >= OPEN_FILES)
    return ok("OPEN_FILES", "Enough files may be open.", `limit ${limit}`);
  const say = limit < FEWEST_OPEN_FILES ? problem : warning;
  return say("OPEN_FILES", {
    message: "Few files may be open at once: every segment of a pool that is mapped elsewhere takes one for a moment.",
    expected: `${OPEN_FILES} or more`,
    found: `${limit}`,
    action: "ulimit -n 65536 (docker: --ulimit nofile=65536)",
  });
}

/** A pool reserves addresses for all memory of its GPU, CUDA itself for that of all GPUs and the host. */
function addressSpace({ limits }: HostFacts): Finding {
  const limit = limits.addressSpaceBytes;
  if (limit === "unlimited") return ok("ADDRESS_SPACE", "The address space is not limited.");
  if (limit === null)
    return unknown("ADDRESS_SPACE", "The limit of the address space is not known.", "/proc/self/limits");
  return problem("ADDRESS_SPACE", {
    message: "The address space is limited: CUDA and the pools reserve far more than they use.",
    expected: "unlimited",
    found: shortBytes(limit),
    action: "ulimit -v unlimited",
  });
}

function overcommit({ overcommit: mode }: HostFacts): Finding {
  if (mode === null) return unknown("OVERCOMMIT", "vm.overcommit_memory is not known.", "it cannot be read");
  if (mode !== 2)
    return ok("OVERCOMMIT", "The kernel does not count reserved memory strictly.", `vm.overcommit_memory=${mode}`);
  return warning("OVERCOMMIT", {
    message: "The kernel counts reserved memory strictly: processes of torch may fail to start with memory free.",
    expected: "vm.overcommit_memory 0 or 1",
    found: "2",
    action: "sysctl vm.overcommit_memory=0 (as root)",
  });
}

function pidfd({ kernel, pidfdError }: HostFacts): Finding {
  if (pidfdError === null) return ok("PIDFD", "Handles of processes (pidfd) work.", `Linux ${kernel}`);
  return problem("PIDFD", {
    message: "Handles of processes (pidfd) do not work, so no death can be noticed.",
    expected: "Linux 5.3 or newer, and no sandbox that forbids pidfd_open",
    found: `Linux ${kernel}: ${pidfdError.message}`,
    action: "Use a newer kernel, or a container whose seccomp profile allows pidfd_open and pidfd_send_signal.",
  });
}

function namespaces({ firstPidNamespace, firstIpcNamespace }: HostFacts): Finding[] {
  const words = (first: boolean | null): string => (first === null ? "unknown" : first ? "the host's" : "its own");
  const found = `process ids: ${words(firstPidNamespace)}, IPC: ${words(firstIpcNamespace)}`;
  const note =
    firstPidNamespace === false
      ? "This is a container: NVML may name other processes by the host's numbers. Descriptors pass through sockets, so memory is shared all the same."
      : "Memory is shared through descriptors, which need no common IPC namespace.";
  return [ok("NAMESPACES", note, found)];
}
