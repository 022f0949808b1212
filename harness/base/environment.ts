// SPDX-License-Identifier: Apache-2.0

/** How a process of ours starts another one: by which command, and in which environment. */
import { asEnvironment, type Settings } from "./settings.ts";

/**
 * Bun, for a process whose settings another one has read. Bun reads `.env` files by itself, others for tests than for
 * programs, and what is announced to be real must not be faked by a line in one of them.
 */
export const BUN = [process.execPath, "--no-env-file"];

/**
 * The variables by which CI systems find the processes of a job. Once the job is over, or cancelled, they kill all that
 * inherited one: GitHub Actions, Azure Pipelines and Jenkins, in this order. The programs of a run have a clean
 * environment and would survive their keeper, so the keeper, which ends by itself, does not inherit them.
 */
const JOB_MARKS = [
  "RUNNER_TRACKING_ID",
  "VSTS_PROCESS_LOOKUP_ID",
  "JENKINS_NODE_COOKIE",
  "JENKINS_SERVER_COOKIE",
  "HUDSON_SERVER_COOKIE",
];

/** Our own environment, with what flags said, and without what would get the keeper killed before it has cleaned up. */
export const keeperEnvironment = (settings: Settings): Record<string, string | undefined> => ({
  ...process.env,
  ...Object.fromEntries(JOB_MARKS.map((name) => [name, undefined])),
  ...asEnvironment(settings),
});

/** Who is asked for a proxy: curl's, Go's, Bun's and gRPC's variables. Each is spelt in capitals, too. */
const PROXIES = ["http_proxy", "https_proxy", "all_proxy", "grpc_proxy"];
const LOOPBACK = ["127.0.0.1", "localhost", "::1"];

/**
 * Adds loopback to `no_proxy` wherever a proxy is set. No proxy can reach this machine's own loopback, yet Bun's `fetch`,
 * curl and others send it even that. Both spellings are set, since programs disagree about which one wins.
 */
export function exemptLoopback(env: NodeJS.ProcessEnv): void {
  const isSet = (name: string) => Boolean(env[name] || env[name.toUpperCase()]);
  if (!PROXIES.some(isSet)) return;
  for (const name of ["no_proxy", "NO_PROXY"]) {
    const listed = (env[name] || env.no_proxy || env.NO_PROXY || "").split(",").filter(Boolean);
    // It means all hosts, but only where it stands alone.
    if (listed.join() !== "*") env[name] = [...new Set([...listed, ...LOOPBACK])].join(",");
  }
}
