/** From facts to findings: pure, so that tests can bring any machine. */
import { judgeCompilers } from "./compilers.js";
import { judgeLinks, judgeNvml } from "./devices.js";
import { judgeDriver, judgePinning } from "./driver.js";
import { judgeEnvironment } from "./environment.js";
import type { Facts } from "./facts.js";
import type { Finding } from "./finding.js";
import { judgeHost } from "./host.js";
import { judgeModel, type ModelPlan } from "./model.js";
import { judgeVersions } from "./versions.js";

/** Every finding, by subject in the order of `SUBJECTS`. */
export function judge(facts: Facts, plan: ModelPlan | null): Finding[] {
  return [
    ...judgeDriver(facts),
    ...judgeNvml(facts),
    ...judgeLinks(facts),
    ...judgeEnvironment(facts),
    ...judgeHost(facts),
    judgePinning(facts),
    ...judgeVersions(facts),
    ...judgeCompilers(facts),
    ...(plan === null ? [] : judgeModel(facts, plan)),
  ];
}
