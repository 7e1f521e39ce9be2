/** What can be wrong with the host and with what is installed: a name, what doctor must say, and the fact. */
import { FAILURE, GIB, type Trouble } from "./machine.js";

export const OF_HOST: readonly Trouble[] = [
  [
    "unknown host memory",
    "HOST_MEMORY:unknown",
    ({ host }) => {
      host.memory = null;
    },
  ],
  [
    "a control group with less than the host has",
    "CGROUP_MEMORY:warning",
    ({ host }) => {
      host.cgroups.unshift({ version: 2, path: "/job", limitBytes: 64 * GIB, usedBytes: GIB, reclaimableBytes: 0 });
    },
  ],
  [
    "a control group that cannot be read",
    "CGROUP_MEMORY:unknown",
    ({ host }) => {
      host.cgroups = [];
    },
  ],
  [
    "docker's 64 MiB of shared memory",
    "SHARED_MEMORY:problem",
    ({ host }) => {
      if (host.sharedMemory) host.sharedMemory.freeBytes = 64 * 2 ** 20;
    },
  ],
  [
    "shared memory for a few ranks",
    "SHARED_MEMORY:warning",
    ({ host }) => {
      if (host.sharedMemory) host.sharedMemory.freeBytes = 200 * 2 ** 20;
    },
  ],
  [
    "no shared memory",
    "SHARED_MEMORY:problem",
    ({ host }) => {
      host.sharedMemory = null;
    },
  ],
  [
    "files of killed runs",
    "LEFT_FILES:warning",
    ({ host }) => {
      host.sharedMemory?.left.push("baton-0123.standin");
    },
  ],
  [
    "few open files",
    "OPEN_FILES:warning",
    ({ host }) => {
      host.limits.openFiles = 1024;
    },
  ],
  [
    "hardly any open files",
    "OPEN_FILES:problem",
    ({ host }) => {
      host.limits.openFiles = 128;
    },
  ],
  [
    "a limited address space",
    "ADDRESS_SPACE:problem",
    ({ host }) => {
      host.limits.addressSpaceBytes = 64 * GIB;
    },
  ],
  [
    "strict overcommit",
    "OVERCOMMIT:warning",
    ({ host }) => {
      host.overcommit = 2;
    },
  ],
  [
    "no pidfd",
    "PIDFD:problem",
    ({ host }) => {
      host.pidfdError = FAILURE;
    },
  ],
  [
    "an old Node.js",
    "NODE_VERSION:problem",
    ({ software }) => {
      software.node = "20.16.0";
    },
  ],
  [
    "an addon of another version",
    "ADDON_VERSION:problem",
    ({ software }) => {
      software.addon = "0.0.9";
    },
  ],
  [
    "an addon that does not load",
    "ADDON_NOT_LOADED:problem",
    ({ software }) => {
      software.addon = { ...FAILURE, code: "ADDON_NOT_LOADED" };
    },
  ],
  [
    "an old Python",
    "PYTHON_VERSION:problem",
    ({ python }) => {
      if (python) python.version = [3, 9];
    },
  ],
  [
    "a new Python",
    "PYTHON_VERSION:problem",
    ({ python }) => {
      if (python) python.version = [3, 14];
    },
  ],
  [
    "no Python",
    "PYTHON_MISSING:problem",
    ({ python }) => {
      if (python) python.path = null;
    },
  ],
  [
    "a Python that does not answer",
    "PYTHON_MISSING:unknown",
    (facts) => {
      facts.python = null;
    },
  ],
  [
    "a needed package missing",
    "PYTHON_PACKAGE_MISSING:problem",
    ({ python }) => {
      delete python?.packages.msgspec;
    },
  ],
  [
    "no DeepSpeed",
    "DEEPSPEED_MISSING:warning",
    ({ python }) => {
      delete python?.packages.deepspeed;
    },
  ],
  [
    "another DeepSpeed",
    "DEEPSPEED_VERSION:warning",
    ({ python }) => {
      if (python) python.packages.deepspeed = "0.20.1";
    },
  ],
  [
    "no vLLM",
    "VLLM_MISSING:warning",
    ({ python }) => {
      delete python?.packages.vllm;
    },
  ],
  [
    "a newer vLLM",
    "VLLM_VERSION:problem",
    ({ python }) => {
      if (python) python.packages.vllm = "0.27.0";
    },
  ],
  [
    "an older transformers",
    "TRANSFORMERS_VERSION:warning",
    ({ python }) => {
      if (python) python.packages.transformers = "4.57.1";
    },
  ],
  [
    "a vLLM without its version",
    "VLLM_VERSION:unknown",
    ({ python }) => {
      if (python) python.packages.vllm = "unknown";
    },
  ],
  [
    "a torch without CUDA",
    "UNSUPPORTED_DEVICE:problem",
    ({ python }) => {
      if (python) Object.assign(python, { torchCuda: null, torchIsCudaBuild: false });
    },
  ],
  [
    "no compiler",
    "NO_COMPILER:warning",
    ({ tools }) => {
      tools.compiler = null;
    },
  ],
  [
    "no nvcc",
    "NVCC:warning",
    ({ tools }) => {
      tools.nvccRelease = null;
    },
  ],
  [
    "an nvcc of another version",
    "NVCC:warning",
    ({ tools }) => {
      tools.nvccRelease = "13.1";
    },
  ],
  [
    "no ninja",
    "NINJA:warning",
    ({ python }) => {
      delete python?.packages.ninja;
    },
  ],
];
