/** Which Node.js and which Python Baton runs with; package.json and python/pyproject.toml say the same to npm and pip. */

/** Major and minor. */
export type Version = readonly [number, number];

export const FIRST_NODE: Version = [20, 17];

/** Those that the pinned packages exist for. */
export const FIRST_PYTHON: Version = [3, 10];
export const LAST_PYTHON: Version = [3, 13];
export const SUPPORTED_PYTHON = `Python ${versionText(FIRST_PYTHON)} to ${versionText(LAST_PYTHON)}`;

export function versionText([major, minor]: Version): string {
  return `${major}.${minor}`;
}

export function isOlder(a: Version, b: Version): boolean {
  return a[0] < b[0] || (a[0] === b[0] && a[1] < b[1]);
}

export function isSupportedPython(version: Version): boolean {
  return !isOlder(version, FIRST_PYTHON) && !isOlder(LAST_PYTHON, version);
}

/** Newest first, as programs are named: python3.13, python3.12, … */
export function pythonPrograms(): string[] {
  const [major, first] = FIRST_PYTHON;
  const [, last] = LAST_PYTHON;
  return Array.from({ length: last - first + 1 }, (_, back) => `python${major}.${last - back}`);
}
