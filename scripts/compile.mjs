/** TypeScript to dist/. What a source that is gone has left there is removed: it would be shipped. */
import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { root, run, SetupError } from "./lib/tools.mjs";

const dist = join(root, "dist");
try {
  run(join(root, "node_modules", ".bin", "tsc"), ["-p", "tsconfig.build.json"]);
  for (const name of readdirSync(dist, { recursive: true, encoding: "utf8" })) {
    const output = /^(.*?)(\.d\.ts|\.js)?(\.map)?$/.exec(name);
    const isFile = output?.[2] !== undefined;
    const isCurrent = output?.[3] === undefined && existsSync(join(root, "src", `${output?.[1]}.ts`));
    if (isFile && !isCurrent) rmSync(join(dist, name), { force: true });
  }
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  console.error(`baton: ${error.message}`);
  process.exitCode = 1;
}
