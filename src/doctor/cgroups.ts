/** The control groups that this process is in, version 1 or 2, from the innermost to the outermost that can be seen. */
import { dirname, join } from "node:path";
import type { CgroupLevel, Limit } from "./facts.js";

type Read = (path: string) => string | null;

/** Version 1 says "no limit" by the largest whole number of pages. */
const NO_LIMIT_V1 = 2 ** 62;

interface Names {
  readonly limit: string;
  readonly used: string;
  /** Key of memory.stat. */
  readonly reclaimable: string;
}
const NAMES: Readonly<Record<1 | 2, Names>> = {
  1: { limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes", reclaimable: "total_inactive_file" },
  2: { limit: "memory.max", used: "memory.current", reclaimable: "inactive_file" },
};

/**
 * @param membership text of /proc/self/cgroup
 * @param mounts text of /proc/self/mountinfo
 */
export function readCgroups(membership: string, mounts: string, read: Read): CgroupLevel[] {
  for (const version of [1, 2] as const) {
    const path = groupOf(membership, version);
    const mount = mountOf(mounts, version);
    if (path === null || mount === null) continue;
    const levels = levelsOf(version, inside(path, mount.root), mount.point, read);
    // A system with both has the memory controller in one of them.
    if (levels.length > 0) return levels;
  }
  return [];
}

/** The line "4:memory:/path", or "0::/path" of version 2. */
function groupOf(membership: string, version: 1 | 2): string | null {
  for (const line of membership.split("\n")) {
    const [number = "", controllers = "", ...rest] = line.split(":");
    const path = rest.join(":");
    if (version === 2 ? number === "0" && controllers === "" : controllers.split(",").includes("memory")) return path;
  }
  return null;
}

/** Fields of mountinfo: id, parent, device, root, mount point, options … - type, source, super options. */
function mountOf(mounts: string, version: 1 | 2): { root: string; point: string } | null {
  for (const line of mounts.split("\n")) {
    const [left = "", right = ""] = line.split(" - ");
    const [, , , root = "", point = ""] = left.split(" ");
    const [type = "", , options = ""] = right.split(" ");
    const wanted = version === 2 ? type === "cgroup2" : type === "cgroup" && options.split(",").includes("memory");
    if (wanted) return { root, point };
  }
  return null;
}

/** A container may see only a part of the tree, mounted at its top. */
function inside(path: string, root: string): string {
  if (root === "/" || root === "") return path;
  if (path === root) return "/";
  return path.startsWith(`${root}/`) ? path.slice(root.length) : "/";
}

function levelsOf(version: 1 | 2, path: string, mountPoint: string, read: Read): CgroupLevel[] {
  const names = NAMES[version];
  const levels: CgroupLevel[] = [];
  for (let at = path; ; at = dirname(at)) {
    const folder = join(mountPoint, at);
    const limit = read(join(folder, names.limit));
    const used = read(join(folder, names.used));
    // The outermost group of version 2 has neither; a group without the memory controller too.
    if (limit !== null || used !== null) {
      const stat = read(join(folder, "memory.stat"));
      levels.push({
        version,
        path: at,
        limitBytes: limitOf(limit),
        usedBytes: numberOf(used),
        reclaimableBytes: numberOf(new RegExp(`^${names.reclaimable} (\\d+)$`, "m").exec(stat ?? "")?.[1] ?? null),
      });
    }
    if (at === "/" || at === ".") return levels;
  }
}

function limitOf(text: string | null): Limit {
  if (text?.trim() === "max") return "unlimited";
  const bytes = numberOf(text);
  return bytes !== null && bytes >= NO_LIMIT_V1 ? "unlimited" : bytes;
}

function numberOf(text: string | null): number | null {
  return text !== null && /^\d+\s*$/.test(text) ? Number(text) : null;
}
