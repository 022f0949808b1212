// SPDX-License-Identifier: Apache-2.0

/**
 * `parity [-t PATTERN]`: runs the suite gateway-adapter on the fake gateway and on the real one, side by side, and
 * prints each scenario whose verdict differs. A fake is honest only while there is none.
 */
import { ROOT } from "../base/root.ts";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Command } from "../command-line.ts";
import { EXIT, HarnessError } from "../base/errors.ts";
import { indent, plural } from "../base/text.ts";
import { within } from "../base/waiting.ts";
import { BUN } from "../base/environment.ts";
import { readable } from "../base/readable.ts";
import { endingWithUs } from "../base/parent.ts";
import { checkParts, findParts, HOW_TO_NAME } from "../runtime/places.ts";
import { ENDING, outlivingToo } from "../base/signals.ts";
import { TOGETHER } from "./test.ts";

const SUITE = "gateway-adapter";
/** The suite waits for the real gateway's time-outs of 30 s. */
const DEADLINE_MS = 600_000;

/** How one scenario ended on one gateway, and why it failed. */
interface Verdict {
  verdict: "pass" | "FAIL" | "skip";
  failure: string;
}

export const command: Command = async (settings, _args, { t: pattern }) => {
  const found = findParts(settings);
  if (!found.gateway.real)
    throw new HarnessError(`parity needs a real gateway beside the fake. ${HOW_TO_NAME.gateway}`);
  const none = { real: false, label: "none", command: [] };
  const { gateway } = await checkParts({ ...found, driver: none, engine: none, supervisor: none }, settings);
  console.log(`fake gateway against ${readable(gateway.label)}`);

  const folder = mkdtempSync(join(tmpdir(), "openshell-parity-"));
  try {
    const [fake, real] = await Promise.all([
      run("fake", { OPENSHELL_E2E_FAKE: "gateway" }, folder, pattern),
      run("real", { OPENSHELL_GATEWAY_BIN: gateway.command[0]! }, folder, pattern),
    ]);
    return report(fake, real);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
};

/**
 * Runs the suite on one gateway.
 * @returns the verdict of each scenario by its title
 * @throws HarnessError with the last words of a run that proved nothing
 */
async function run(
  name: "fake" | "real",
  differing: Partial<Record<string, string>>,
  folder: string,
  pattern: string | undefined,
): Promise<Map<string, Verdict>> {
  const junit = join(folder, `${name}.xml`);
  const filter = pattern === undefined ? [] : ["-t", pattern];
  const began = performance.now();
  const child = Bun.spawn(
    outlivingToo([...BUN, "test", "--reporter=junit", `--reporter-outfile=${junit}`, ...filter, TOGETHER]),
    {
      cwd: ROOT,
      env: {
        ...process.env,
        ...WITHOUT_PLACES,
        ...differing,
        ...endingWithUs(),
        OPENSHELL_E2E_SUITES: SUITE,
      },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
      timeout: DEADLINE_MS,
    },
  );
  const forward = (signal: NodeJS.Signals) => child.kill(signal);
  for (const signal of ENDING) process.on(signal, forward);
  const output = Promise.all([child.stdout.text(), child.stderr.text()]);
  await child.exited;
  // What a gateway left in the background may hold the output open; that is no reason to wait.
  const [stdout, stderr] = await within(2_000, "the rest of the output", output).catch(() => ["", ""]);
  const verdicts = readJunit(junit);
  if ([...verdicts.values()].every(({ verdict }) => verdict === "skip")) {
    const words = readable(`${stdout}${stderr}`).trimEnd().split("\n").slice(-12).join("\n");
    throw new HarnessError(`parity: the run on the ${name} gateway proved nothing:\n${indent(words, "  ")}`);
  }
  const count = (wanted: string) => [...verdicts.values()].filter(({ verdict }) => verdict === wanted).length;
  const seconds = ((performance.now() - began) / 1_000).toFixed(1);
  console.log(`${name}: ${count("pass")} passed, ${count("FAIL")} failed, ${seconds} s`);
  return verdicts;
}

/** What would put something else than the gateway that is asked for in its place. */
const WITHOUT_PLACES = {
  OPENSHELL_E2E_FAKE: undefined,
  OPENSHELL_E2E_REQUIRE: undefined,
  OPENSHELL_GATEWAY_BIN: undefined,
  OPENSHELL_REPO: undefined,
} satisfies Partial<Record<string, string | undefined>>;

/** The verdicts in a JUnit report of bun's; none when there is no report. */
function readJunit(path: string): Map<string, Verdict> {
  const verdicts = new Map<string, Verdict>();
  if (!existsSync(path)) return verdicts;
  const cases = /<testcase name="([^"]*)"[^>]*?(?:\/>|>(.*?)<\/testcase>)/gs;
  for (const [, name = "", inside = ""] of readFileSync(path, "utf8").matchAll(cases)) {
    const verdict = inside.includes("<failure") ? "FAIL" : inside.includes("<skipped") ? "skip" : "pass";
    const [, failure = ""] = /<failure [^>]*message="([^"]*)"/.exec(inside) ?? [];
    verdicts.set(unescapeXml(name), { verdict, failure: unescapeXml(failure) });
  }
  return verdicts;
}

const unescapeXml = (text: string): string =>
  text
    .replaceAll("&lt;", "<")
    .replaceAll("&gt;", ">")
    .replaceAll("&quot;", '"')
    .replaceAll("&apos;", "'")
    .replaceAll("&#10;", "\n")
    .replaceAll("&amp;", "&");

/** Prints each difference, and what fails on both gateways, which is no parity either. */
function report(fake: Map<string, Verdict>, real: Map<string, Verdict>): number {
  // What a pattern leaves out is skipped on both.
  const titles = [...new Set([...fake.keys(), ...real.keys()])].filter(
    (title) => fake.get(title)?.verdict !== "skip" || real.get(title)?.verdict !== "skip",
  );
  let differences = 0;
  let failures = 0;
  for (const title of titles) {
    const [onFake, onReal] = [fake.get(title), real.get(title)];
    if (onFake?.verdict === onReal?.verdict) {
      if (onFake?.verdict !== "FAIL") continue;
      failures++;
      console.log(`FAILS ON BOTH  ${title}${reason(onReal)}`);
      continue;
    }
    differences++;
    console.log(`DIFFERS  ${title}`);
    console.log(`  fake: ${onFake?.verdict ?? "did not run"}${reason(onFake)}`);
    console.log(`  real: ${onReal?.verdict ?? "did not run"}${reason(onReal)}`);
  }
  console.log(`parity: ${plural(titles.length, "scenario")}, ${plural(differences, "difference")}`);
  return differences + failures > 0 ? EXIT.failed : EXIT.ok;
}

/** Why a scenario failed, below its line. */
const reason = (verdict: Verdict | undefined): string =>
  verdict?.failure ? `\n${indent(readable(verdict.failure).split("\n").slice(0, 6).join("\n"), "    ")}` : "";
