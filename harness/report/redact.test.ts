// SPDX-License-Identifier: Apache-2.0

/** A canary in every field that can carry a secret: none may sing in any format. */
import { describe, expect, test } from "bun:test";
import { ctrf } from "./formats/ctrf.ts";
import { describeDiff, diff } from "./diff.ts";
import { smallExample } from "./example.ts";
import { annotations, stepSummary } from "./formats/github.ts";
import { html } from "./formats/html.ts";
import { junit } from "./formats/junit.ts";
import { markdown } from "./formats/markdown.ts";
import { matrix } from "./formats/matrix.ts";
import { isRed, type Results } from "./model.ts";
import { redactResults } from "./redact.ts";
import { secretsIn } from "../base/secrets.ts";
import { explainOnTerminal } from "./terminal.ts";

const FORMATS: Record<string, (results: Results) => string> = {
  json: (results) => JSON.stringify(results),
  html,
  junit,
  ctrf,
  markdown,
  github: (results) => [stepSummary(results), ...annotations(results)].join("\n"),
  matrix: (results) => matrix([results]),
  diff: (results) => describeDiff(diff(smallExample(), results), smallExample(), results),
  terminal: (results) =>
    results.scenarios
      .filter(({ verdict }) => isRed(verdict))
      .map((scenario) => explainOnTerminal(scenario, results.calls, results))
      .join("\n"),
};

/** A token as the gateway makes them, and a secret that looks like nothing: it is known from where it was first. */
const JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJzYW5kYm94In0.c2lnbmF0dXJlLWNhbmFyeQ";
const OPAQUE = "canary7f3a91d0c4";

/** Results with the canary in every text that there is, and in every kind of body. */
function planted(canary: string): Results {
  const results = structuredClone(smallExample());
  const sing = (text: string) => `${text} ${canary}`;
  results.run.command = sing(results.run.command);
  results.leftovers.push(sing("secret openshell-token"));
  for (const place of Object.values(results.stack)) place.label = sing(place.label);
  for (const scenario of results.scenarios) {
    for (const field of ["title", "reason", "source", "harm", "expected", "seen"] as const)
      scenario[field] = sing(scenario[field]);
    scenario.logs.gateway.push(sing("INFO request headers"));
    scenario.logs.driver.push(sing("DEBUG container spec"));
    scenario.engine.push(sing("container exited with code 1, said"));
  }
  for (const process of results.processes) process.ending = sing("exit code 1");
  for (const phase of results.phases) phase.name = sing(phase.name);
  for (const mark of results.marks) mark.what = sing(mark.what);
  for (const call of results.calls) {
    call.details = sing(call.details);
    call.request = body(canary);
    call.responses = [body(canary), { podman: { Config: { Env: [`OPENAI_API_KEY=${canary}`] } } }];
  }
  return results;
}

const body = (canary: string) => ({
  sandbox: {
    spec: {
      sandbox_token: canary,
      environment: { GREETING: canary, TOKEN: canary },
      template: { environment: { PASSWORD: canary } },
      command: ["curl", "-H", `Authorization: Bearer ${canary}`, `--token=${canary}`, "--password", canary],
    },
    status: { conditions: [{ message: `refused: ${canary}` }] },
    credentials: { nested: [canary] },
  },
});

describe.each([
  ["that looks like a token", JWT],
  ["that looks like nothing", OPAQUE],
])("a secret %s", (_, canary) => {
  const clean = redactResults(planted(canary));

  test.each(Object.keys(FORMATS))("is not in %s", (format) => {
    expect(FORMATS[format]!(planted(canary))).toContain(canary);
    expect(FORMATS[format]!(clean)).not.toContain(canary);
  });
});

test("an environment has secrets where its names say so", () => {
  const environment = {
    GITHUB_TOKEN: "one-secret",
    AWS_SECRET_ACCESS_KEY: "two-secret",
    CI_TOKEN: "true",
    PATH: "/bin",
    TOKEN_FILE: "/x",
    EMPTY_TOKEN: "",
  };
  expect(secretsIn(environment)).toEqual(["one-secret", "two-secret"]);
});

test.each([
  ["Authorization: Bearer abcdefgh12345678", "Authorization: Bearer <redacted>"],
  ["GET https://user:hunter22@example.com/x", "GET https://<redacted>@example.com/x"],
  ['{"sandbox_token": "s3cr3tvalue"}', '{"sandbox_token": "<redacted>"}'],
  ["driver --token s3cr3tvalue --socket /x", "driver --token <redacted> --socket /x"],
  ["sandbox_token=s3cr3tvalue next=1", "sandbox_token=<redacted> next=1"],
  ["pushed with ghp_0123456789abcdefghij", "pushed with <redacted>"],
  ["-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----", "<private key>"],
])("%p becomes %p", (text, expected) => {
  const results = smallExample();
  results.leftovers = [text];
  expect(redactResults(results).leftovers).toEqual([expected]);
});

test("what is no secret stays as it was", () => {
  const results = smallExample();
  results.leftovers = [
    "secret openshell-token-46b9b912-ca4c-483e-87c0-00000000001a",
    "the token of a sandbox is in no log",
    "podman API error (500): volume with name openshell-sandbox-1-workspace already exists",
    "Expected: <token>",
    "dial unix:///run/podman/podman.sock: connect: connection refused",
  ];
  expect(redactResults(results)).toEqual(results);
});

test("environment and bodies keep their names", () => {
  const results = smallExample();
  results.calls[0]!.request = {
    spec: { environment: { LANG: "C" }, env: ["PATH=/bin"], token_file: "/run/secrets/token" },
  };
  expect(redactResults(results).calls[0]!.request).toEqual({
    spec: { environment: { LANG: "<redacted>" }, env: ["PATH=<redacted>"], token_file: "/run/secrets/token" },
  });
});

test("results that were redacted stay as they are", () => {
  const once = redactResults(planted(JWT));
  expect(redactResults(once)).toEqual(once);
});

test("whether there is a token is no secret", () => {
  const results = smallExample();
  results.scenarios[0]!.reason =
    '-   "token": false,\n+   "token": true,\nhas_secret: null, token=truebutlonger';
  expect(redactResults(results).scenarios[0]!.reason).toBe(
    '-   "token": false,\n+   "token": true,\nhas_secret: null, token=<redacted>',
  );
});
