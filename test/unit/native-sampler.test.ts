/** NVML and the sampler, on the stand-in's library. */
import { rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, describe, expect, test } from "vitest";
import { BatonError } from "../../src/errors.js";
import { monotonicNs, openNvml, standinFolder, startSampler } from "../../src/native.js";
import { atEnd, start, until } from "./native-support.js";

const DEVICES = 3;
const DEVICE_BYTES = 2 ** 30;
const HELD_BYTES = 64 * 2 ** 20;
const libraryPath = join(standinFolder(), "libnvidia-ml.so.1");

/** Holds HELD_BYTES of device 1 by the stand-in's driver until it is killed. */
const HOLDER = `
import ctypes, sys, time
cuda = ctypes.CDLL(sys.argv[1] + "/libcuda.so.1")
def call(name, *arguments):
    result = getattr(cuda, name)(*arguments)
    assert result == 0, (name, result)
call("cuInit", 0)
context = ctypes.c_void_p()
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 1)
call("cuCtxSetCurrent", context)
class Property(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("handle_types", ctypes.c_int), ("location_type", ctypes.c_int),
                ("location_id", ctypes.c_int), ("win32", ctypes.c_void_p), ("flags", ctypes.c_ubyte * 8)]
handle = ctypes.c_uint64()
call("cuMemCreate", ctypes.byref(handle), ctypes.c_size_t(${HELD_BYTES}), ctypes.byref(Property(1, 1, 1, 1)), ctypes.c_uint64(0))
print("held", flush=True)
time.sleep(60)
`;

// One table for the file: the library reads its environment when it is first opened.
const table = join(tmpdir(), `baton-sampler-${process.pid}.standin`);
Object.assign(process.env, {
  BATON_STANDIN_TABLE: table,
  BATON_STANDIN_DEVICES: String(DEVICES),
  BATON_STANDIN_BYTES: String(DEVICE_BYTES),
});
afterAll(() => rmSync(table, { force: true }));

describe("NVML", () => {
  test("shows the stand-in's devices, and says that they are simulated", async () => {
    const nvml = await openNvml(libraryPath);
    atEnd(() => nvml.close());
    expect(nvml.simulated).toBe(true);
    expect(nvml.deviceCount).toBe(DEVICES);
    expect(nvml.path).toBe(libraryPath);
    expect(nvml.driverVersion).toMatch(/./);
    expect(new Set([0, 1, 2].map((index) => nvml.uuid(index))).size).toBe(DEVICES);
    const memory = nvml.memory(0);
    expect(memory.totalBytes).toBe(DEVICE_BYTES);
    expect(memory.usedBytes + memory.freeBytes + (memory.reservedBytes ?? 0)).toBe(DEVICE_BYTES);
    expect(await nvml.processes(0)).toEqual([]);
    expect(() => nvml.memory(DEVICES)).toThrow(BatonError);
    nvml.close();
    expect(() => nvml.memory(0)).toThrow(expect.objectContaining({ code: "NVML_CLOSED" }));
  });

  test("a library that is not there is an error that says where it was looked for", async () => {
    const failure = openNvml("/nowhere/libnvidia-ml.so.1");
    await expect(failure).rejects.toBeInstanceOf(BatonError);
    await expect(failure).rejects.toMatchObject({ code: "DRIVER_NOT_FOUND", found: /nowhere/ });
  });
});

describe("the sampler", () => {
  test("sees what a process takes and gives back, and keeps the peak", async () => {
    const sampler = await startSampler({ libraryPath, hz: 200, processHz: 20 });
    atEnd(() => sampler.stop());
    expect(sampler.simulated).toBe(true);
    const used = (): number => sampler.latest().devices[1]?.usedBytes ?? Number.NaN;
    const idle = used();
    expect(idle).toBeLessThan(HELD_BYTES);
    const holder = start("python3", ["-c", HOLDER, standinFolder()]);
    await until("it holds", () => holder.output().includes("held"));
    await until("it is seen", () => used() >= HELD_BYTES);
    await until(
      "its process is seen",
      () => sampler.latest().processes[1]?.some(({ pid }) => pid === holder.pid) === true,
    );
    const taken = used();
    holder.process.kill("SIGKILL");
    await until("it is given back", () => used() === idle);
    expect(sampler.peaks()[1]?.usedBytes).toBe(taken);
    expect(sampler.peaks()[0]?.usedBytes).toBe(sampler.latest().devices[0]?.usedBytes);
    sampler.resetPeaks();
    expect(sampler.peaks()[1]?.usedBytes).toBe(idle);
    const series = sampler.drain();
    expect(Math.max(...series.usedBytes)).toBe(taken);
  });

  test("1 kHz is a steady rate that costs little", async () => {
    const sampler = await startSampler({ libraryPath, hz: 1000, processHz: 2 });
    atEnd(() => sampler.stop());
    const from = monotonicNs();
    await sleep(1000);
    sampler.stop();
    const series = sampler.drain();
    expect(series.deviceCount).toBe(DEVICES);
    expect(series.usedBytes.length).toBe(series.timesNs.length * DEVICES);
    const { samples, late, cpuNs, wallNs } = sampler.cost();
    expect(series.timesNs.length + series.dropped).toBe(samples);
    // Every tick was taken or counted as late, whatever else the machine does.
    const ticks = Number(wallNs) / 1e6;
    expect(samples + late).toBeGreaterThan(ticks * 0.95 - 2);
    expect(samples).toBeLessThan(ticks * 1.05 + 2);
    expect(series.timesNs.at(-1)).toBeGreaterThan(from);
    // The stand-in does more in a call than a driver (it looks at every holder); the goal is for real GPUs.
    expect(Number(cpuNs) / Number(wallNs)).toBeLessThan(0.5);
    const again = sampler.drain();
    expect(again.timesNs.length).toBe(0);
  });

  test("rates out of range are errors", async () => {
    await expect(startSampler({ libraryPath, hz: 0 })).rejects.toMatchObject({ code: "BAD_ARGUMENT" });
    await expect(startSampler({ libraryPath, hz: 5000 })).rejects.toThrow(/hz/);
    await expect(startSampler({ libraryPath, hz: 10, processHz: -1 })).rejects.toThrow(/processHz/);
  });
});
