/**
 * `npm run prebuilds`: what the package ships, under prebuilds/<platform>-<arch>: the addon (by prebuildify, through
 * binding.gyp), libbaton.so, baton-guard, baton-probe, and the stand-ins in a folder of their own.
 *
 * The files need a C library as new as this machine's use of it; shown at the end. Build releases on an old one.
 */
import { chmodSync, cpSync, existsSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { buildRelease } from "./lib/native.mjs";
import { output, root, run, SetupError, which } from "./lib/tools.mjs";

const platform = `${process.platform}-${process.arch}`;
const built = join(root, "build", "Release");
const target = join(root, "prebuilds", platform);

// The headers beside this node, so that node-gyp has nothing to download.
const prefix = dirname(dirname(process.execPath));
const headers = existsSync(join(prefix, "include", "node", "node_api.h")) ? { npm_config_nodedir: prefix } : {};

rmSync(target, { recursive: true, force: true });
run("npx", ["prebuildify", "--napi", "--strip", "--tag-libc", "-t", process.version], {
  env: { ...process.env, ...headers, PREBUILD_NODE_GYP: join(root, "scripts", "lib", "node_gyp.mjs") },
});

// prebuildify has moved the addon away: the checkout gets its own again.
buildRelease();

const strip = which("strip");
for (const name of ["libbaton.so", "baton-guard", "baton-probe", "standin/libcuda.so.1", "standin/libnvidia-ml.so.1"]) {
  const from = join(built, name);
  if (!existsSync(from)) throw new SetupError(`${from} was not built`);
  const to = join(target, name);
  mkdirSync(dirname(to), { recursive: true });
  cpSync(from, to);
  if (strip !== null) run(strip, ["--strip-unneeded", to]);
}
for (const name of ["baton-guard", "baton-probe"]) chmodSync(join(target, name), 0o755);

const files = readdirSync(target, { recursive: true }).filter((name) =>
  /\.(node|so(\.\d+)?)$|guard$|probe$/.test(name),
);
const needs = files.flatMap((name) => [
  ...(output("objdump", ["-T", join(target, name)]) ?? "").matchAll(/GLIBC_(\d+\.\d+)/g),
]);
const newest = needs
  .map((match) => match[1])
  .sort((a, b) => a.localeCompare(b, "en", { numeric: true }))
  .at(-1);
console.log(`${target}: ${files.sort().join(", ")}; needs glibc ${newest ?? "unknown"} or newer`);
