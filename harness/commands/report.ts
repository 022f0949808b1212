// SPDX-License-Identifier: Apache-2.0

/**
 * `report [DIR|FILE]... --format html|junit|ctrf|markdown|github|matrix [--out FILE]`: makes a report of what a run came
 * to, as often as wanted and also afterwards, from its results.json.
 */
import { appendFileSync, mkdirSync, writeFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import type { Command } from "../command-line.ts";
import { EXIT, HarnessError } from "../base/errors.ts";
import { ctrf } from "../report/formats/ctrf.ts";
import { annotations, stepSummary } from "../report/formats/github.ts";
import { html } from "../report/formats/html.ts";
import { junit } from "../report/formats/junit.ts";
import { markdown } from "../report/formats/markdown.ts";
import { matrix } from "../report/formats/matrix.ts";
import type { Results } from "../report/model.ts";
import { readResults } from "../report/read.ts";

const FORMATS: Record<string, (results: Results) => string> = {
  html,
  junit,
  ctrf,
  markdown,
  github: stepSummary,
};

export const command: Command = async (settings, args, { format, out }) => {
  const names = [...Object.keys(FORMATS), "matrix"];
  if (!format || !names.includes(format))
    throw new HarnessError(`--format: one of ${names.join(", ")} was expected${format ? `: ${format}` : ""}`);
  const paths = args.length > 0 ? args : [settings.reports];
  if (format === "matrix") {
    await write(matrix(paths.map(readResults)), out);
    return EXIT.ok;
  }
  const [path = "", another] = paths;
  if (another !== undefined)
    throw new HarnessError(
      `--format ${format} is made of one run, and ${paths.length} were named; matrix takes several`,
    );
  const results = readResults(path);
  const report = FORMATS[format]!(results);
  if (format === "github") {
    const summary = process.env.GITHUB_STEP_SUMMARY;
    // Commands for the runner go to the step's log, and the summary to the file that it names.
    for (const line of annotations(results)) console.log(line);
    if (!out && summary) appendFileSync(summary, report);
    else await write(report, out);
    return EXIT.ok;
  }
  // A page is for a browser, not for a terminal.
  const beside = join(path.endsWith(".json") ? dirname(path) : path, "report.html");
  await write(report, out ?? (format === "html" ? beside : undefined));
  return EXIT.ok;
};

/** Writes into a file and says so, or to standard output: without a file, or for `-`. */
async function write(text: string, out: string | undefined): Promise<void> {
  // Awaited: what waits in a pipe is lost when the process exits.
  if (!out || out === "-") {
    await Bun.write(Bun.stdout, text).catch((error: Error) => {
      throw new HarnessError(`report: it cannot be written to stdout: ${error.message}`);
    });
    return;
  }
  try {
    mkdirSync(dirname(resolve(out)), { recursive: true });
    writeFileSync(out, text);
  } catch (error) {
    throw new HarnessError(`--out ${out}: cannot be written: ${(error as Error).message}`);
  }
  console.error(`Written: ${relative(process.cwd(), resolve(out)) || out}`);
}
