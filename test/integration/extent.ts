/**
 * How much is tested. Most of a run's time is its start (PyTorch in each of its processes), so `npm test` runs one of
 * each kind, within half an hour on two cores; `npm test -- --all` sets BATON_ALL_TESTS, and runs every variant.
 */
export const ALL = process.env.BATON_ALL_TESTS === "1";

/**
 * Some pairs of a matrix: every row has its turn and every column. With `step` 2 it is half of the pairs, with 1 and
 * with `ALL` it is every one.
 */
export function taken(row: number, column: number, step: number): boolean {
  return ALL || (row + column) % step === 0;
}
