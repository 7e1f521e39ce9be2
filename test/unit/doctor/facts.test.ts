/** How facts are read: from the kernel's files, from a probe of real drivers (stand-ins), from Python. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { leftSharedMemory } from "../../../src/controller/leftovers.js";
import { makeStandin } from "../../../src/controller/standin.js";
import { readCgroups } from "../../../src/doctor/cgroups.js";
import { registerBytes, whichGpus } from "../../../src/doctor/collect.js";
import { collectHost, parseLimit, parseMemory } from "../../../src/doctor/collect-host.js";
import { askCuda, askNvml } from "../../../src/doctor/collect-probe.js";
import { collectPython, collectTools } from "../../../src/doctor/collect-software.js";
import { availableHostBytes } from "../../../src/doctor/host.js";
import { KNOWN } from "../../../src/doctor/versions.js";
import { standinFolder } from "../../../src/native.js";
import { DONE, FAILURE, GIB } from "./machine.js";

const MIB = 2 ** 20;
const root = join(import.meta.dirname, "../../..");

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "baton-doctor-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

describe("control groups", () => {
  const files = (contents: Record<string, string>) => (path: string) => contents[path] ?? null;

  it("of version 2 are read at each level", () => {
    const levels = readCgroups(
      "0::/user.slice/job\n",
      "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
      files({
        "/sys/fs/cgroup/user.slice/job/memory.max": "68719476736\n",
        "/sys/fs/cgroup/user.slice/job/memory.current": "8589934592\n",
        "/sys/fs/cgroup/user.slice/job/memory.stat": "anon 1\ninactive_file 4294967296\nactive_file 5\n",
        "/sys/fs/cgroup/user.slice/memory.max": "max\n",
        "/sys/fs/cgroup/user.slice/memory.current": "9000000000\n",
      }),
    );
    expect(levels).toEqual([
      {
        ...{ version: 2, path: "/user.slice/job", limitBytes: 64 * GIB, usedBytes: 8 * GIB },
        reclaimableBytes: 4 * GIB,
      },
      { version: 2, path: "/user.slice", limitBytes: "unlimited", usedBytes: 9e9, reclaimableBytes: null },
    ]);
    const memory = { totalBytes: 512 * GIB, availableBytes: 500 * GIB };
    expect(availableHostBytes({ memory, cgroups: levels })).toBe(60 * GIB);
  });

  it("of version 1 are read where a container has mounted its part of them", () => {
    const levels = readCgroups(
      "5:cpu:/x\n4:memory:/docker/abc/inner\n0::/\n",
      "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
      files({
        "/sys/fs/cgroup/memory/inner/memory.limit_in_bytes": "9223372036854771712\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": "1024\n",
      }),
    );
    expect(levels.map(({ path, limitBytes, usedBytes }) => [path, limitBytes, usedBytes])).toEqual([
      ["/inner", "unlimited", null],
      ["/", GIB, 1024],
    ]);
  });

  it("that are not there are none, not a limit of 0", () => {
    expect(readCgroups("", "", () => null)).toEqual([]);
    expect(availableHostBytes({ memory: null, cgroups: [] })).toBeNull();
  });
});

describe("the kernel's files", () => {
  it("are read in bytes, and unknown stays unknown", () => {
    expect(parseMemory("MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n")).toEqual({
      totalBytes: 2 * MIB,
      availableBytes: MIB,
    });
    expect(parseMemory("MemTotal:       2048 kB\n")).toBeNull();
    const limits =
      "Max locked memory         65536                8388608              bytes     \nMax open files            unlimited            unlimited            files\n";
    expect(parseLimit(limits, "Max locked memory")).toBe(65_536);
    expect(parseLimit(limits, "Max open files")).toBe("unlimited");
    expect(parseLimit(limits, "Max address space")).toBeNull();
  });

  it("of this host tell everything", async () => {
    const host = await collectHost({ ...process.env, XDG_RUNTIME_DIR: folder });
    expect(host.memory?.totalBytes).toBeGreaterThan(GIB / 2);
    expect(host.memory?.availableBytes).toBeLessThan(host.memory?.totalBytes ?? 0);
    expect(host.pidfdError).toBeNull();
    expect(host.socketParent).toBe(folder);
    expect(host.limits.openFiles).not.toBeNull();
    expect(host.sharedMemory?.freeBytes).toBeGreaterThan(0);
  });

  it("names files of killed runs, and no others", () => {
    writeFileSync(join(folder, "baton-1.standin"), "x");
    writeFileSync(join(folder, "other"), "x");
    expect(leftSharedMemory(folder, /^baton-/)).toEqual(["baton-1.standin"]);
  });
});

describe("a probe", () => {
  const standin = (faults: string | null) =>
    makeStandin(
      `doctor-test-${process.pid}`,
      { folder: standinFolder(), devices: 2, bytesPerDevice: 64 * MIB, granularityBytes: 2 * MIB, faults },
      {},
    );
  const ask = async (faults: string | null, deadlineMs = 15_000) => {
    const { environment, remove } = standin(faults);
    try {
      return await askCuda({ ...process.env, ...environment }, MIB, deadlineMs);
    } finally {
      remove();
    }
  };

  it("passes memory of every GPU to another process, on its own GPU and on the next", async () => {
    const cuda = await ask(null);
    expect(cuda.end).toMatchObject({ how: "done" });
    expect(cuda.driver).toMatchObject({ simulated: true, deviceCount: 2 });
    expect(cuda.roundTrips.map(({ from, to, stage, error }) => [from, to, stage, error])).toEqual([
      [0, 0, "release", undefined],
      [0, 1, "release", undefined],
      [1, 1, "release", undefined],
      [1, 0, "release", undefined],
    ]);
    expect(cuda.register).toEqual({ bytes: MIB });
  });

  it.each([
    ["cuMemCreate:result=2", "create"],
    ["cuMemMap:device=0:result=1", "map"],
    ["cuMemcpyHtoD:result=700", "write"],
    ["cuMemExportToShareableHandle:result=801", "export"],
    ["cuMemImportFromShareableHandle:result=999", "import"],
    ["cuMemcpyDtoH:result=700", "import"],
    ["cuMemUnmap:result=1", "import"],
  ])("says at which step it failed: %s", async (fault, stage) => {
    const { roundTrips } = await ask(fault);
    expect(roundTrips[0]).toMatchObject({ stage, error: { message: expect.stringMatching(/./) } });
  });

  it("that hangs is ended, and what it was at is known", async () => {
    const began = performance.now();
    const cuda = await ask("cuInit:delay_ms=60000", 500);
    expect(performance.now() - began).toBeLessThan(5_000);
    expect(cuda.end).toMatchObject({ how: "deadline", at: "cuInit" });
    expect(cuda.driver).toBeNull();
  });

  it("that crashes in the driver is no crash of ours", async () => {
    const cuda = await ask("cuMemMap:signal=11");
    expect(cuda.end).toMatchObject({ how: "crash", detail: "ended by SIGSEGV" });
    expect(cuda.end.at).toContain("memory of GPU 0");
    expect(cuda.driver).not.toBeNull();
  });

  it("whose reader dies says so", async () => {
    const died = await ask("cuMemImportFromShareableHandle:signal=9");
    expect(died.roundTrips[0]?.error?.found).toContain("signal 9");
  });

  it("asks NVML for memory and processes", async () => {
    const { environment, remove } = standin(null);
    const nvml = await askNvml({ ...process.env, ...environment }, 15_000);
    remove();
    expect(nvml.devices.map(({ totalBytes, processes, mig }) => [totalBytes, processes, mig])).toEqual([
      [64 * MIB, [], null],
      [64 * MIB, [], null],
    ]);
    expect(nvml.pairs).toHaveLength(2);
  });
});

describe("which GPUs a run would use", () => {
  const cuda = { driver: null, error: FAILURE, end: DONE };
  const nvml = { library: null, error: FAILURE, end: DONE };
  const library = { path: "", simulated: false, driverVersion: "", cudaVersion: null, deviceCount: 1 };
  it("is what NVML shows; and a driver that hangs counts as one", () => {
    expect(whichGpus(cuda, nvml)).toBe("stand-in");
    expect(whichGpus(cuda, { ...nvml, library })).toBe("real");
    expect(whichGpus(cuda, { ...nvml, library: { ...library, simulated: true } })).toBe("stand-in");
    expect(whichGpus(cuda, { ...nvml, library: { ...library, deviceCount: 0 } })).toBe("stand-in");
    expect(whichGpus({ ...cuda, end: { how: "deadline", at: "cuInit", detail: "" } }, nvml)).toBe("real");
  });

  it("so much is pinned that a small limit of locked memory would show", () => {
    expect(registerBytes(65_536)).toBe(64 * MIB);
    expect(registerBytes(100 * MIB)).toBe(200 * MIB);
    expect(registerBytes(8 * GIB)).toBe(512 * MIB);
    expect(registerBytes("unlimited")).toBe(64 * MIB);
  });
});

describe("Python and compilers", () => {
  it("an interpreter that does not run, or does not answer, is none", async () => {
    const silent = join(folder, "python");
    writeFileSync(silent, "#!/bin/sh\nsleep 60\n", { mode: 0o755 });
    for (const path of ["/bin/false", silent]) {
      const began = performance.now();
      const facts = await collectPython({ BATON_PYTHON: path }, folder, folder, 500);
      expect(facts).toMatchObject({ path: null, asked: [path], packages: {} });
      expect(performance.now() - began).toBeLessThan(5_000);
    }
  });

  it("a compiler is tried, not believed", async () => {
    const old = join(folder, "old-c++");
    writeFileSync(old, '#!/bin/sh\n[ "$1" = --version ] && echo "c++ 4.8" && exit 0\nexit 1\n', { mode: 0o755 });
    expect((await collectTools({ ...process.env, CXX: old })).compiler).toEqual({
      ...{ path: old, version: "c++ 4.8", cxx20: false },
    });
    expect((await collectTools({ CXX: "no-such-compiler", PATH: "" })).compiler).toBeNull();
    expect((await collectTools({ ...process.env, CXX: undefined })).compiler?.cxx20).toBe(true);
  });

  it("the versions that are known are those of the Python package", () => {
    const adapter = readFileSync(join(root, "python/src/baton/engines/vllm/versions.py"), "utf8");
    const match = /FIRST, LAST = \((\d+), (\d+)\), \((\d+), (\d+)\)/.exec(adapter);
    expect(match?.slice(1).map(Number)).toEqual([...KNOWN.vllm.first, ...KNOWN.vllm.last]);
    const pins = readFileSync(join(root, "python/requirements.txt"), "utf8");
    for (const name of ["torch", "deepspeed", "transformers", "accelerate"] as const) {
      const [major = -1, minor = -1] = (new RegExp(`^${name}==(\\d+)\\.(\\d+)`, "m").exec(pins) ?? [])
        .slice(1)
        .map(Number);
      const { first, last } = KNOWN[name];
      expect(major, name).toBe(first[0]);
      expect(minor, name).toBeGreaterThanOrEqual(first[1]);
      expect(minor, name).toBeLessThanOrEqual(last[1]);
    }
  });
});
