/** Variables that are known to break a run, or to make it other than it was meant. */
import type { Failure } from "../protocol/messages.js";
import {
  type checkEnvironment,
  checkExpandableSegments,
  checkSocketPath,
  checkVisibleDevices,
} from "../recipe/index.js";
import type { Facts } from "./facts.js";
import { type Finding, findingsOf } from "./finding.js";

const { ok, warning, problem, unknown } = findingsOf("environment");

/** What a launcher gives each rank: left over in a shell, a script takes itself for a rank of another job. */
const OF_A_LAUNCHER = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"] as const;

type Given = Pick<Facts, "gpus" | "cuda" | "nvml" | "host">;

export function judgeEnvironment(facts: Given): Finding[] {
  return [
    ofRealGpus(facts, "EXPANDABLE_SEGMENTS", checkExpandableSegments, "Torch's allocator is set as Baton needs it."),
    ofRealGpus(facts, "BAD_DEVICES", checkVisibleDevices, "CUDA_VISIBLE_DEVICES leaves the GPUs their numbers."),
    ...archList(facts),
    ...multicast(facts),
    ...accelerator(facts),
    socketPath(facts),
    masterPort(facts),
    launcherVariables(facts),
  ];
}

/** A setting that stands only in the way of real GPUs. */
function ofRealGpus({ gpus, host }: Given, code: string, check: typeof checkEnvironment, good: string): Finding {
  const failure = check(host.environment);
  if (failure === null) return ok(code, good);
  if (gpus === "real") return problem(failure.code, texts(failure));
  return warning(failure.code, { ...texts(failure), message: `${failure.message} (A run on real GPUs is refused.)` });
}

function texts({ message, expected, found, action }: Failure): Omit<Failure, "code"> {
  return { message, expected, found, action };
}

/** DeepSpeed 0.19 takes each part of it for a number. */
function archList({ host }: Given): Finding[] {
  const value = host.environment.TORCH_CUDA_ARCH_LIST;
  if (value === undefined || value.trim() === "") return [];
  const parts = value.split(/[;\s]+/).filter((part) => part !== "");
  const bad = parts.filter((part) => !/^\d+\.\d+(\+PTX)?$/.test(part));
  if (bad.length === 0) return [ok("ARCH_LIST", `DeepSpeed can read TORCH_CUDA_ARCH_LIST (${value}).`)];
  return [
    warning("ARCH_LIST", {
      message: "DeepSpeed cannot read TORCH_CUDA_ARCH_LIST, and so cannot build FusedAdam.",
      expected: "numbers such as 9.0 or 9.0+PTX, with ; between them",
      found: `TORCH_CUDA_ARCH_LIST=${value}`,
      action: `Write ${bad[0]?.replace(/[a-z]+/, "") ?? "9.0"} in place of ${bad.join(" and ")}.`,
    }),
  ];
}

/** Multicast memory of NCCL's NVLS is not made for GPUs that several groups take in turn. */
function multicast({ gpus, nvml, host }: Given): Finding[] {
  const count = nvml.library?.deviceCount ?? 0;
  if (gpus !== "real" || count < 2) return [];
  const value = host.environment.NCCL_NVLS_ENABLE;
  if (value === "0") return [ok("NVLS", "NCCL's NVLink multicast (NVLS) is off.")];
  return [
    warning("NVLS", {
      message: "NCCL may use NVLink multicast (NVLS), with which Baton was not tried.",
      expected: "NCCL_NVLS_ENABLE=0",
      found: value === undefined ? "not set" : `NCCL_NVLS_ENABLE=${value}`,
      action: "export NCCL_NVLS_ENABLE=0",
    }),
  ];
}

function accelerator({ gpus, host }: Given): Finding[] {
  const value = host.environment.DS_ACCELERATOR;
  if (gpus !== "real" || value === undefined || value === "cuda") return [];
  return [
    problem("DS_ACCELERATOR", {
      message: "DeepSpeed is told not to train on the GPUs.",
      expected: "DS_ACCELERATOR not set, or cuda",
      found: `DS_ACCELERATOR=${value}`,
      action: "unset DS_ACCELERATOR",
    }),
  ];
}

function socketPath({ host }: Given): Finding {
  const failure = checkSocketPath(`${host.socketParent}/baton-XXXXXX/socket`);
  if (failure !== null) return problem(failure.code, texts(failure));
  return ok("SOCKET_PATH_TOO_LONG", "The socket's path is short enough.", host.socketParent);
}

function masterPort({ host }: Given): Finding {
  const value = host.environment.MASTER_PORT;
  if (value === undefined) return ok("MASTER_PORT", "MASTER_PORT is left to the launcher.");
  const found = `MASTER_PORT=${value}`;
  const port = Number(value);
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    return problem("MASTER_PORT", {
      message: "MASTER_PORT is no port.",
      expected: "a number from 1 to 65535",
      found,
      action: "unset MASTER_PORT",
    });
  }
  if (host.masterPortTaken === null) return unknown("MASTER_PORT", "Whether MASTER_PORT is free is not known.", found);
  if (host.masterPortTaken) {
    return warning("MASTER_PORT", {
      message: "Another process listens on MASTER_PORT: ranks that use it cannot start.",
      expected: "a free port, or none set",
      found,
      action: "unset MASTER_PORT, or give the launcher a port of its own (--main_process_port, --master-port).",
    });
  }
  return warning("MASTER_PORT", {
    message: "MASTER_PORT is set for every run: two at once take the same port.",
    expected: "left to the launcher",
    found,
    action: "unset MASTER_PORT; launchers find a free port themselves.",
  });
}

function launcherVariables({ host }: Given): Finding {
  const set = OF_A_LAUNCHER.filter((name) => host.environment[name] !== undefined);
  if (set.length === 0) return ok("LAUNCHER_VARIABLES", "No variable of another launcher is left in the environment.");
  return warning("LAUNCHER_VARIABLES", {
    message: "Variables of a launcher are set: a script that is started without one takes itself for a rank.",
    expected: "none of them",
    found: set.map((name) => `${name}=${host.environment[name]}`).join(", "),
    action: `unset ${set.join(" ")}`,
  });
}
