/** What killed runs leave outside their folder, and whose it must not be. */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import {
  type Owner,
  ownedName,
  ownerOf,
  recordPath,
  removeSharedMemory,
  sweep,
  thisOwner,
} from "../../src/controller/ownership.js";
import { temporaryFolder } from "./native-support.js";

const self = thisOwner() as Owner;
/** As this process, with an id that a process had which has ended. */
const gone: Owner = { ...self, pid: spawnSync("true").pid };

it("a name tells its owner", () => {
  expect(self.pid).toBe(process.pid);
  expect(ownerOf(ownedName("0123456789ab"))).toEqual(self);
  expect(ownerOf(`${ownedName("bench-1", gone)}.standin`)).toEqual(gone);
  for (const other of ["baton-abc123.standin", "baton-X", "deepspeed_x", "socket"]) expect(ownerOf(other)).toBeNull();
});

it("what is left by a run that is certainly gone is removed, and nothing else", () => {
  const folder = temporaryFolder();
  const names = {
    gone: ownedName("gone", gone),
    otherStart: `${ownedName("start", { ...self, startTime: self.startTime + 1n })}.standin`,
    alive: ownedName("alive"),
    // Of another container, or another boot: nobody here can tell whether it lives.
    otherNamespace: ownedName("namespace", { ...gone, namespace: self.namespace + 1n }),
    otherBoot: ownedName("boot", { ...gone, boot: self.boot === "00000000" ? "00000001" : "00000000" }),
    unknown: ownedName("unknown", null),
    notOurs: "baton-abc123.standin",
  };
  for (const name of Object.values(names)) {
    mkdirSync(join(folder, name));
    writeFileSync(join(folder, name, "socket"), "");
  }
  const left = [names.gone, names.otherStart].map((name) => join(folder, name));
  expect(sweep([folder, folder, join(folder, "missing")]).sort()).toEqual(left.sort());
  for (const path of left) expect(existsSync(path)).toBe(false);
  for (const name of Object.values(names).slice(2)) expect(existsSync(join(folder, name, "socket")), name).toBe(true);
});

it("shared memory that a guard noted goes with it, as long as it is the same file", () => {
  const folder = temporaryFolder();
  const shared = join(folder, "deepspeed_1 with a space");
  const another = join(folder, "deepspeed_2");
  for (const path of [shared, another]) writeFileSync(path, "x");
  const { dev, ino } = statSync(shared, { bigint: true });
  const socketFolder = join(folder, ownedName("gone", gone));
  mkdirSync(socketFolder);
  const line = `${dev} ${ino} ${shared}\n`;
  writeFileSync(recordPath(socketFolder), `${line}${dev} ${ino} ${another}\n${dev} 12 /nonexistent\n${line}12 3`);
  expect(sweep([folder])).toEqual([shared, socketFolder]);
  expect([shared, another].map((path) => existsSync(path))).toEqual([false, true]);
  expect(removeSharedMemory(socketFolder)).toEqual([]);
});
