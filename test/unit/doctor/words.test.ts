/** Findings that are good or unknown, and the words that tell like findings apart. */
import { describe, expect, it } from "vitest";
import { linkMatrix } from "../../../src/doctor/devices.js";
import type { Facts, Limit } from "../../../src/doctor/facts.js";
import { judge } from "../../../src/doctor/judge.js";
import { describeFindings } from "../../../src/doctor/print.js";
import { FAILURE, found, GIB, type Mutable, machine, troubles, withoutGpu } from "./machine.js";

type Spoil = (facts: Mutable<Facts>) => void;

/** Verdict and message of each finding with this code. */
const says = (code: string, spoil: Spoil = () => {}, of = machine): string[] =>
  found(of(spoil), code).map(({ verdict, message }) => `${verdict}: ${message}`);

const withVariable =
  (name: string, value: string): Spoil =>
  ({ host }) => {
    host.environment[name] = value;
  };

describe("the environment", () => {
  it("may name the first GPUs, and architectures by number", () => {
    expect(troubles(machine(withVariable("CUDA_VISIBLE_DEVICES", "0, 1")))).toEqual([]);
    expect(says("ARCH_LIST", withVariable("TORCH_CUDA_ARCH_LIST", "8.0 9.0+PTX"))).toEqual([
      "ok: DeepSpeed can read TORCH_CUDA_ARCH_LIST (8.0 9.0+PTX).",
    ]);
  });

  it("needs nothing said of NVLS on one GPU, nor without any", () => {
    const one: Spoil = ({ nvml, host }) => {
      if (nvml.library) nvml.library.deviceCount = 1;
      delete host.environment.NCCL_NVLS_ENABLE;
    };
    expect(says("NVLS", one)).toEqual([]);
    expect(says("NVLS", (facts) => one(facts), withoutGpu)).toEqual([]);
  });

  it("with a MASTER_PORT says whether it is taken, free, or not known to be", () => {
    const port = (taken: boolean | null): string[] =>
      says("MASTER_PORT", (facts) => {
        withVariable("MASTER_PORT", "29500")(facts);
        facts.host.masterPortTaken = taken;
      });
    expect(port(true)).toEqual([expect.stringMatching(/^warning: Another process listens/)]);
    expect(port(false)).toEqual([expect.stringMatching(/^warning: MASTER_PORT is set for every run/)]);
    expect(port(null)).toEqual([expect.stringMatching(/^unknown: /)]);
  });
});

describe("the driver", () => {
  const missing = { how: "missing", at: null, detail: "no baton-probe" } as const;

  it("that could not be asked is unknown, real or not", () => {
    const real: Spoil = ({ cuda }) => Object.assign(cuda, { driver: null, end: missing, roundTrips: [], contexts: [] });
    expect(says("DRIVER", real)).toEqual(["unknown: The drivers could not be asked."]);
    const standin: Spoil = (facts) => Object.assign(facts.standin?.cuda ?? {}, { driver: null, end: missing });
    expect(says("STANDIN", standin, withoutGpu)).toEqual(["unknown: The stand-in GPUs could not be tried."]);
    const nvml: Spoil = (facts) => Object.assign(facts.nvml, { library: null, end: missing, devices: [], pairs: [] });
    expect(says("NVML", nvml)).toEqual(["unknown: NVML could not be asked."]);
  });

  it("that fails is told from one that crashes", () => {
    const failed: Spoil = ({ cuda }) => Object.assign(cuda, { driver: null, error: FAILURE });
    expect(says("DRIVER", failed)).toEqual(["problem: The CUDA driver cannot be used: it failed."]);
    const end = { how: "crash", at: "cuInit", detail: "ended by SIGSEGV" };
    const crashed: Spoil = ({ cuda }) => Object.assign(cuda, { driver: null, end });
    expect(says("DRIVER", crashed)).toEqual(["problem: The CUDA driver crashes whoever calls it."]);
  });

  it("must be the real one where NVML is", () => {
    const simulated: Spoil = ({ cuda }) => {
      if (cuda.driver) cuda.driver.simulated = true;
    };
    expect(says("DRIVER", simulated)).toEqual(["problem: NVML is the driver's, and libcuda.so.1 is Baton's stand-in."]);
  });

  it("that shows no GPU says so", () => {
    const none: Spoil = ({ cuda }) => {
      if (cuda.driver) cuda.driver.deviceCount = 0;
    };
    expect(says("NO_VISIBLE_DEVICES", none)).toEqual(["problem: The CUDA driver shows no GPU."]);
  });

  it("of CUDA 12 is a warning where torch is not known", () => {
    const old: Spoil = ({ cuda, python }) => {
      if (cuda.driver) cuda.driver.version = 12_080;
      if (python) python.torchCuda = null;
    };
    expect(says("DRIVER_TOO_OLD", old)).toEqual([expect.stringMatching(/^warning: /)]);
  });

  it("is not praised for round trips that did not end well", () => {
    const none: Spoil = ({ cuda }) => {
      for (const trip of cuda.roundTrips) Object.assign(trip, { stage: "create", error: FAILURE });
    };
    expect(found(machine(none), "VMM_ROUND_TRIP", "ok")).toEqual([]);
  });

  it("is said to be well with what was tried", () => {
    expect(found(machine(), "VMM_ROUND_TRIP", "ok")[0]).toMatchObject({
      message: expect.stringContaining("Memory of GPU 0, 1 was made"),
      found: "2.0 MiB each; read on another GPU: 0 -> 1, 1 -> 0",
    });
  });

  it("may pin without limit, tried or not", () => {
    const untried: Spoil = ({ cuda }) => {
      cuda.register = null;
    };
    expect(says("MEMLOCK", untried)).toEqual(["ok: Locked memory is not limited."]);
  });
});

describe("stand-ins", () => {
  it("that were not tried are not spoken of", () => {
    const untried: Spoil = (facts) => {
      facts.standin = null;
    };
    expect(says("NVML", untried, withoutGpu)).toEqual([]);
    expect(troubles(withoutGpu(untried))).toEqual([]);
  });
});

describe("links", () => {
  it("are none to speak of on one GPU, or on stand-ins", () => {
    const one: Spoil = ({ nvml, cuda }) => {
      nvml.devices.pop();
      Object.assign(nvml, { pairs: [] });
      Object.assign(cuda, { peers: [] });
    };
    expect(judge(machine(one), null).filter(({ subject }) => subject === "links")).toHaveLength(1);
    const standin: Spoil = (facts) => Object.assign(facts.nvml, { devices: machine().nvml.devices });
    expect(judge(withoutGpu(standin), null).filter(({ subject }) => subject === "links")).toEqual([]);
  });

  it("without NVLink are by PCIe, and that is no trouble", () => {
    const pcie: Spoil = ({ nvml }) => {
      for (const device of nvml.devices) device.nvlinksActive = null;
      for (const pair of nvml.pairs) Object.assign(pair, { nvlinkStatus: 5, level: 30 });
    };
    expect(troubles(machine(pcie))).toEqual([]);
    expect(says("NVLINK", pcie)).toEqual(["ok: The GPUs have no NVLink."]);
    expect(found(machine(pcie), "PEER_ACCESS")[0]?.found).toBe("2 of 2 by PHB");
    expect(found(machine(), "PEER_ACCESS")[0]?.found).toBe("2 of 2 by NVLink");
  });

  it("that are refused are named with why", () => {
    const refused: Spoil = ({ cuda, nvml }) => {
      if (cuda.peers[1]) cuda.peers[1].access = false;
      Object.assign(nvml.pairs[1] ?? {}, { readStatus: 3, nvlinkStatus: 3 });
    };
    expect(found(machine(refused), "PEER_ACCESS").map((finding) => finding.found)).toEqual([
      "1 -> 0 (SYS, no path on this topology)",
    ]);
  });

  it("are shown as a matrix", () => {
    const { nvml, cuda } = machine(({ cuda: given }) => {
      if (given.peers[1]) given.peers[1].access = false;
    });
    const matrix = linkMatrix(nvml, cuda.peers);
    expect(matrix).toEqual([
      ["GPU 0", "-", "NVLink"],
      ["GPU 1", "NVLink, no peer", "-"],
    ]);
    const text = describeFindings(judge(machine(), null), { colour: false, matrix });
    expect(text).toMatch(/GPU 1 {2}NVLink, no peer {2}-/);
    expect(linkMatrix({ ...nvml, devices: nvml.devices.slice(0, 1) }, [])).toEqual([]);
  });
});

describe("the host", () => {
  it("has limits that are unknown, which is not unlimited", () => {
    const unread: Spoil = ({ host }) => {
      host.limits = { lockedBytes: "unlimited", openFiles: null, addressSpaceBytes: null };
      host.overcommit = null;
      host.cgroups = [{ version: 2, path: "/job", limitBytes: null, usedBytes: 1, reclaimableBytes: null }];
    };
    expect(troubles(machine(unread))).toEqual([
      "CGROUP_MEMORY:unknown",
      "OPEN_FILES:unknown",
      "ADDRESS_SPACE:unknown",
      "OVERCOMMIT:unknown",
    ]);
  });

  it("may have a control group that limits less than the host does", () => {
    const wide: Spoil = ({ host }) => {
      const limitBytes: Limit = 510 * GIB;
      host.cgroups = [{ version: 1, path: "/job", limitBytes, usedBytes: GIB, reclaimableBytes: 0 }];
    };
    expect(says("CGROUP_MEMORY", wide)).toEqual(["ok: No control group limits memory below what the host has."]);
  });
});

describe("versions", () => {
  it("that are well are shown", () => {
    expect(says("PEFT_VERSION")).toEqual(["ok: peft 0.20.0"]);
    expect(says("UNSUPPORTED_DEVICE")).toEqual(["ok: torch was built for CUDA 13.0"]);
    const without: Spoil = ({ python }) => {
      if (python) {
        python.torchIsCudaBuild = null;
        delete python.packages.peft;
      }
    };
    expect(says("PEFT_VERSION", without)).toEqual([]);
    expect(says("UNSUPPORTED_DEVICE", without)).toEqual([]);
  });

  it("of a torch without CUDA are no trouble on stand-ins", () => {
    const cpu: Spoil = ({ python }) => {
      if (python) Object.assign(python, { torchCuda: null, torchIsCudaBuild: false });
    };
    expect(troubles(withoutGpu(cpu))).toEqual([]);
  });
});
