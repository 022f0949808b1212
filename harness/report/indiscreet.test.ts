// SPDX-License-Identifier: Apache-2.0

/** What a driver tells that should not tell it, and what it tells to others than people, on every way out. */
import { ROOT } from "../base/root.ts";
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { processTable } from "../runtime/processes.ts";
import { COMMANDS, encodings } from "./indiscreet.fixture.ts";
import { LONGEST_TEXT, readable, readableError, readableWhole, withoutSpans } from "../base/readable.ts";
import { know, Secrets } from "../base/secrets.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const FOLDER = mkdtempSync(join(tmpdir(), "ind-"));
afterAll(() => rmSync(FOLDER, { recursive: true, force: true }));

const segment = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
/** A token as a gateway makes them, with all that such tokens have in common. */
const token = () =>
  [
    segment({ alg: "EdDSA", typ: "JWT" }),
    segment({
      iss: "https://gateway.example",
      aud: "openshell",
      sub: crypto.randomUUID(),
      iat: 1_700_000_000,
    }),
    Buffer.from(crypto.getRandomValues(new Uint8Array(64))).toString("base64url"),
  ].join(".");

describe("a secret that is known is found", () => {
  const secrets = [
    ...Array.from({ length: 50 }, token),
    "correct horse/battery+staple",
    "0f9d2c7b-opaque-value",
  ];
  const known = new Secrets(secrets);
  const long = secrets[17]!;

  test.each(Object.keys(encodings("x")))("as %s", (encoding) => {
    for (const secret of [long, secrets[50]!, secrets[51]!]) {
      // Half of what is not a token says nothing.
      if (secret !== long && encoding === "its second half") continue;
      const clean = known.redact(`before ${encodings(secret)[encoding]} after`.replaceAll("\u001b[31m", ""));
      expect(clean).toStartWith("before ");
      expect(clean).toContain("after");
      expect(piecesOf(secret, clean)).toEqual([]);
    }
  });

  test("by each segment of a token alone, and by the key of a PEM file", () => {
    for (const part of long.split(".").slice(1))
      expect(known.redact(`part ${part}.`)).toMatch(/^part [-_]?<redacted>[-_]?\.$/);
    const der = Uint8Array.from({ length: 48 }, (_, at) => 48 + at * 3);
    const body = Buffer.from(der).toString("base64");
    const keys = new Secrets([`-----BEGIN PRIVATE KEY-----\n${body}\n-----END PRIVATE KEY-----\n`]);
    expect(keys.redact(`key ${body} or ${Buffer.from(der).toString("hex")}`)).toBe(
      "key <redacted> or <redacted>",
    );
    expect(keys.redact("-----BEGIN PRIVATE KEY-----")).toBe("-----BEGIN PRIVATE KEY-----");
  });

  test("and nothing else is", () => {
    for (const text of ["the token of a sandbox is in no log", "correct horse", crypto.randomUUID(), ROOT])
      expect(known.redact(text)).toBe(text);
    expect(
      new Secrets(["short", "/home/somebody/of/a/long/name/with/a/long/path/to/a/file/config"]).redact(
        "short /home/somebody/of/a/long/name/x",
      ),
    ).toBe("short /home/somebody/of/a/long/name/x");
  });

  test("however many are known, of which the latest count", () => {
    const many = new Secrets(Array.from({ length: 2_000 }, token));
    const last = token();
    many.add(last);
    const began = performance.now();
    expect(many.redact(`${"x".repeat(1_000_000)} ${last}`)).toEndWith(" <redacted>");
    expect(performance.now() - began).toBeLessThan(2_000);
  });
});

/** Runs of 16 letters and digits of a secret, or of a usual encoding of it, that a text has. */
function piecesOf(secret: string, text: string): string[] {
  const plain = (of: string) => of.toLowerCase().replaceAll(/[^a-z0-9]/g, "");
  const seen = plain(text);
  const forms = [secret, Buffer.from(secret).toString("base64"), Buffer.from(secret).toString("hex")].map(
    plain,
  );
  return forms.flatMap((form) => {
    const length = Math.min(16, form.length);
    const starts = Array.from({ length: form.length - length + 1 }, (_, at) => form.slice(at, at + length));
    return starts.filter((piece) => seen.includes(piece));
  });
}

describe("no text takes long: a megabyte of", () => {
  // One run of each is not measured: code that was never run is not compiled yet.
  const known = new Secrets(Array.from({ length: 200 }, token));
  test.each([
    ["hex", "deadbeef"],
    ["words with hyphens", "a-a-a-"],
    ["names of secrets", "token token token "],
    ["assignments", "token="],
    ["flags", "--token"],
    ["hyphens", "-"],
    ["schemes", "://"],
    ["addresses", "a://b:"],
    ["base64", "YWJjZGVm"],
    ["beginnings of tokens", "eyJhbGciOiJFZERTQSJ9."],
    ["beginnings of keys", "-----BEGIN "],
    ["quotes", '"'],
    ["blanks", " "],
    ["line breaks", "\n"],
    ["carriage returns", "\r"],
    ["NUL", "\u0000"],
    ["halves of characters", "\ud83d"],
    ["escape sequences", "\u001b]8;;"],
    ["colours", "\u001b[31m"],
    ["spans", "a{"],
    ["backticks", "`x"],
  ])("%s", (_, unit) => {
    const text = unit.repeat(1_000_000 / unit.length);
    const times = [1, 2].map(() => {
      const began = performance.now();
      const clean = readable(text, known);
      withoutSpans(clean.slice(0, 20_000));
      expect(clean.length).toBeLessThan(8 * LONGEST_TEXT);
      return performance.now() - began;
    });
    expect(Math.min(...times)).toBeLessThan(2_000);
  });
});

describe("what would do something is shown and does nothing:", () => {
  test.each([
    ["a control character", "a\u001b[2Jb\u0007\u009b", String.raw`a\x1b[2Jb\x07\x9b`],
    ["a link on a terminal", "\u001b]8;;https://x/\u0007", String.raw`\x1b]8;;https://x/\x07`],
    ["a carriage return", "safe\rforged", String.raw`safe\rforged`],
    ["a turn of the direction", "\u202egpj.exe", String.raw`\u202egpj.exe`],
    ["an invisible letter", "a\u200bb\u{e0041}", String.raw`a\u200bb\u{e0041}`],
    [
      "a runner's command",
      "x\n  ::error::y\n\u00a0::add-mask::z",
      String.raw`x` + "\n  \\x3a:error::y\n\u00a0\\x3a:add-mask::z",
    ],
    ["a runner's older command", "said ##[error]x", String.raw`said \x23#[error]x`],
    ["another runner's command", "##vso[task.complete]x", String.raw`\x23#vso[task.complete]x`],
  ])("%s", (_, text, shown) => {
    expect(readable(text)).toBe(shown);
    expect(readable(shown)).toBe(shown);
  });

  test("while ordinary text, in any script, is left as it is", () => {
    const text = "Grüße, 日本語, العربية, 👩‍👩‍👧\n\tstd::string a::b ## heading #[attr] \\x1b";
    expect(readable(text)).toBe(text);
    expect(readable("\u001b[32mINFO\u001b[0m ready\r\n")).toBe("INFO ready\n");
  });

  test("of a long text the beginning and the end", () => {
    const shown = readable(`begin ${"x ".repeat(1_000_000)} end`);
    expect(shown).toStartWith("begin ");
    expect(shown).toEndWith(" end");
    expect(shown).toMatch(/\n… \([\d,]+ characters are left out\) …\n/);
    expect(shown.length).toBeLessThanOrEqual(LONGEST_TEXT);
    expect(readableWhole("x".repeat(2_000_000))).toHaveLength(2_000_000);
  });

  test("an error in all that is printed of it", () => {
    const secret = token();
    know(secret);
    const told = { code: 13, details: secret, metadata: { internalRepr: secret } };
    const cause = new Error(`because of ${secret}`);
    const error = Object.assign(new AggregateError([new Error(secret)], `a ${secret}`, { cause }), told);
    const clean = readableError(error);
    expect(clean).toBe(error);
    expect(Bun.inspect(clean)).not.toContain(secret.slice(-20));
    expect(clean.message).toMatch(/^a <(?:token|redacted)>$/);
  });
});

// The harness as its user runs it

const SECRET = "Zq7-plain+looking/value.81";

interface Ran {
  code: number;
  said: string;
  /** Everything that it wrote, by the file's name. */
  files: Record<string, string>;
  /** The command lines and environments of the harness's own processes and fakes meanwhile. */
  processes: string;
  /** The tokens that the driver was given. */
  tokens: string[];
}

/** Runs `bun harness.ts …` with the indiscreet driver. */
async function run(name: string, args: string[], format: string[] = []): Promise<Ran> {
  const [runs, reports] = [join(FOLDER, `${name}-runs`), join(FOLDER, `${name}-reports`)];
  const tokens = join(FOLDER, `${name}-tokens`);
  const driver = `${process.execPath} ${join(import.meta.dir, "indiscreet.fixture.ts")} {socket} ${tokens}`;
  const { PATH, HOME } = process.env;
  const env = {
    ...{
      PATH,
      HOME,
      OPENSHELL_E2E_RUN_DIR: runs,
      OPENSHELL_E2E_REPORTS: reports,
      OPENSHELL_DRIVER_CMD: driver,
    },
    ...{ OPENSHELL_E2E_FAKE: "gateway,engine,supervisor", OPENSHELL_DRIVER_ENV: "INDISCREET_VALUE" },
    INDISCREET_VALUE: SECRET,
  };
  const spawn = (argv: string[]) =>
    Bun.spawn([process.execPath, "harness.ts", ...argv], {
      cwd: ROOT,
      env,
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
  const child = spawn(args);
  let processes = "";
  const look = () => {
    for (const { command, environment } of processTable())
      if (environment.some((entry) => entry.includes(runs)))
        processes += `${command}\n${environment.join("\n").replace(`INDISCREET_VALUE=${SECRET}`, "")}\n`;
  };
  const looking = setInterval(look, 25);
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  const code = await child.exited;
  clearInterval(looking);
  let said = out + err;
  for (const each of format) {
    const made = spawn(["report", reports, "--format", each, "--out", join(reports, `made.${each}`)]);
    said += (await made.stdout.text()) + (await made.stderr.text());
  }
  const names = [...new Bun.Glob("**/*").scanSync({ cwd: reports })];
  const files = Object.fromEntries(names.map((file) => [file, readFileSync(join(reports, file), "utf8")]));
  expect(readdirSync(runs)).toEqual([]);
  expect(existsSync(tokens), `no sandbox was created:\n${said}`).toBe(true);
  return { code, said, files, processes, tokens: readFileSync(tokens, "utf8").split("\n").filter(Boolean) };
}

/** Makes sure that nothing that left the harness has a secret, or does anything. */
function isInert({ said, files, processes, tokens }: Ran): void {
  expect(tokens.length).toBeGreaterThan(0);
  for (const [where, text] of Object.entries({ terminal: said, processes, ...files })) {
    for (const secret of [SECRET, ...tokens])
      expect({ where, pieces: piecesOf(secret, text) }).toEqual({ where, pieces: [] });
    if (where === "processes") continue;
    // oxlint-disable-next-line no-control-regex -- they are what is looked for
    const active = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u202a-\u202e\u2066-\u2069]/;
    // oxlint-disable-next-line no-control-regex -- colours are our own
    const ours = where === "terminal" ? text.replaceAll(/\u001b\[[\d;]*m/g, "") : text;
    expect({ where, active: active.exec(ours)?.[0] }).toEqual({ where, active: undefined });
    if (/\.(?:json|html|ctrf)$/.test(where)) continue;
    const commands = text
      .split("\n")
      .filter((line) => /^\s*::(?!(?:error|warning) (?:file=|::))|##\[|##vso\[/.test(line));
    expect({ where, commands }).toEqual({ where, commands: [] });
  }
}

describe("a driver that tells all it knows, and gives commands to whoever reads it, does so in vain", () => {
  test.concurrent(
    "in a run of scenarios: terminal, trace, logs, results, JUnit, HTML, Markdown and annotations",
    async () => {
      const formats = ["html", "junit", "ctrf", "markdown", "github", "matrix"];
      const ran = await run(
        "e2e",
        ["test", "external-podman", "-t", "SM-0[23]", "--trace", "1", "--verbose", "1"],
        formats,
      );
      expect(ran.code).toBe(1);
      isInert(ran);
      // It is still told what was said, by the error and by the log.
      expect(ran.said).toMatch(/cannot use <(?:token|redacted)>, <redacted> or <redacted>/);
      expect(ran.said).toContain(String.raw`\x1b]52;c;`);
      expect(ran.said).toContain(String.raw`\x3a:stop-commands::pause`);
      expect(ran.files["logs/1-driver.log"]).toContain(String.raw`first\rsecond`);
      expect(ran.files["made.html"]).not.toContain("<script>alert");
      expect(ran.files["made.markdown"]).not.toMatch(/^(?:\||- |\s*\*\*).*@octocat/m);
    },
    120_000,
  );

  test.concurrent(
    "in checks: terminal and the table for a README",
    async () => {
      const ran = await run("check", ["check", "--only", "DC-12,DC-30,DC-45,DC-51"]);
      isInert(ran);
      const table = ran.files["contract.md"]!;
      expect(table.split("\n")[0]).toStartWith(String.raw`## Contract conformance of in\\x1b\]0;discreet`);
      expect(table.split("\n")[0]).toEndWith(String.raw`1\|2 @&#8203;octocat`);
      expect(table).not.toMatch(/@octocat|!\[image\]|<script>/);
    },
    120_000,
  );

  test.concurrent(
    "in a soak",
    async () => isInert(await run("soak", ["soak", "--sandboxes", "2", "--parallel", "2"])),
    120_000,
  );
});

test("the fixture gives every command that is looked for", () => {
  expect(COMMANDS.split("\n").filter((line) => /^\s*::/.test(line))).toHaveLength(3);
});
