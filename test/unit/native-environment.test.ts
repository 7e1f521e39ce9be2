/** The addon in environments that end: workers, and the whole process. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { expect, test } from "vitest";
import { processInfo } from "../../src/native.js";
import { atEnd, openDescriptors, start, temporaryFolder, until } from "./native-support.js";

const root = fileURLToPath(new URL("../..", import.meta.url));
const addonPath = join(root, "build", "Release", "baton.node");
const nvmlPath = join(root, "build", "Release", "standin", "libnvidia-ml.so.1");

/** Opens one of everything; plain JavaScript, since it runs outside of vitest. */
const OPEN_ALL = `
  const addon = require(options.addonPath);
  addon.initialize(class extends Error { constructor(fields) { super(fields.message); Object.assign(this, fields); } });
  const listener = addon.listen(options.socket, (channel) => { channel.onFrame = () => {}; channels.push(channel); });
  const channels = [addon.connect(options.socket)];
  channels[0].send(Buffer.alloc(8_000_000));
  const pidfd = addon.openPidfd(process.pid);
  pidfd.onExit = () => {};
  const closing = addon.connect(options.socket);
  closing.send(Buffer.alloc(8_000_000));
  closing.close(60_000);
`;

const workerCode = (end: string): string => `
  const { workerData: options, parentPort } = require("node:worker_threads");
  ${OPEN_ALL}
  Promise.all([addon.openNvml(options.nvmlPath), addon.startSampler({ libraryPath: options.nvmlPath, hz: 1000 })])
    .then(([nvml, sampler]) => { parentPort.postMessage(sampler.latest().devices.length + nvml.deviceCount); ${end} });
`;

function standinEnvironment(): NodeJS.ProcessEnv {
  const table = join(temporaryFolder(), "standin");
  return { BATON_STANDIN_TABLE: table, BATON_STANDIN_DEVICES: "2", BATON_STANDIN_BYTES: String(2 ** 30) };
}

test.each([
  ["is terminated", ""],
  ["calls process.exit", "process.exit(0)"],
])("a worker that %s leaves nothing open", async (_, end) => {
  // The stand-in reads the environment of the process, which all of its workers share.
  const environment = standinEnvironment();
  Object.assign(process.env, environment);
  atEnd(() => {
    for (const name of Object.keys(environment)) delete process.env[name];
  });
  // What a first worker and a first NVML open for good is not counted.
  let before = 0;
  for (let round = 0; round < 4; round++) {
    const socket = join(temporaryFolder(), "socket");
    const worker = new Worker(workerCode(end), { eval: true, workerData: { addonPath, nvmlPath, socket } });
    const exited = new Promise<void>((resolve, reject) => {
      worker.once("error", reject);
      worker.once("exit", () => resolve());
    });
    await new Promise<void>((resolve, reject) => {
      worker.once("message", (devices: number) => {
        expect(devices).toBe(4);
        resolve();
      });
      worker.once("error", reject);
    });
    if (end === "") await worker.terminate();
    await exited;
    if (round === 0) before = openDescriptors();
  }
  await until("all descriptors are closed", () => openDescriptors() <= before);
});

test.each([
  ["with process.exit", "process.exit(7)", 7],
  ["by an uncaught error", "throw new Error('on purpose')", 1],
])("a process that ends %s while everything is open ends at once", async (_, end, code) => {
  const socket = join(temporaryFolder(), "socket");
  const options = JSON.stringify({ addonPath, nvmlPath, socket });
  const started = performance.now();
  const child = start(process.execPath, [
    "-e",
    `const options = ${options}; ${OPEN_ALL}; setTimeout(() => { ${end} }, 50);`,
  ]);
  expect(await child.exit).toEqual({ code, signal: null });
  expect(performance.now() - started).toBeLessThan(10_000);
});

test("what a callback throws is an uncaught exception, not a crash", async () => {
  const socket = join(temporaryFolder(), "socket");
  const options = JSON.stringify({ addonPath, nvmlPath, socket });
  const child = start(process.execPath, [
    "-e",
    `const options = ${options}; ${OPEN_ALL};
     process.on("uncaughtException", (error) => { console.log("caught", error.message); process.exit(3); });
     channels[0].onFrame = () => { throw new Error("from onFrame"); };
     setTimeout(() => channels[1].send(Buffer.from("x")), 50);`,
  ]);
  expect(await child.exit).toEqual({ code: 3, signal: null });
  expect(child.output()).toContain("caught from onFrame");
});

test("a process with nothing open ends by itself", async () => {
  const code = `const addon = require(${JSON.stringify(addonPath)}); addon.initialize(Error); addon.monotonicNs();
    const pidfd = addon.openPidfd(1); pidfd.unref();`;
  const child = start(process.execPath, ["-e", code]);
  expect(await child.exit).toEqual({ code: 0, signal: null });
  expect(processInfo(child.pid)).toBeNull();
});

test("native.ts declares what the addon exports, no more and no less", async () => {
  const source = readFileSync(join(root, "src", "native.ts"), "utf8");
  const declared = /export interface Addon \{([^}]*)\}/.exec(source)?.[1] ?? "";
  const names = [...declared.matchAll(/^ {2}(?:readonly )?(\w+)[(:]/gm)].map((match) => match[1]);
  const child = start(process.execPath, ["-p", `JSON.stringify(Object.keys(require(${JSON.stringify(addonPath)})))`]);
  await child.exit;
  expect(names.sort()).toEqual((JSON.parse(child.output()) as string[]).sort());
});
