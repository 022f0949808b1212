// SPDX-License-Identifier: Apache-2.0

/** Drivers that stop and start wrongly. */
import { mutant, refusal } from "../../../harness/conformance/mutant.ts";
import type { RawCall } from "../../../harness/runtime/faults/tap.ts";
import { isStopped } from "../../../harness/conformance/driver.ts";
import { find, idOf, atMost } from "./broken.ts";

mutant("StopSandbox is OK for an id that it does not know", ["DC-10", "DC-55", "DC-66", "DC-162"], {
  StopSandbox: ({ sandbox_id }, pass) =>
    pass().catch((error: unknown) => {
      if (!sandbox_id) throw error;
      return {};
    }),
});

mutant("StartSandbox is OK for an id that it does not know", ["DC-56", "DC-66", "DC-162"], {
  StartSandbox: ({ sandbox_id }, pass) =>
    pass().catch((error: unknown) => {
      if (!sandbox_id) throw error;
      return {};
    }),
});

mutant("StopSandbox refuses a sandbox that is stopped", ["DC-57", "DC-150"], {
  StopSandbox: async ({ sandbox_id }, pass, { ask }) => {
    const before = await find(ask, sandbox_id);
    if (isStopped(before)) throw refusal("FAILED_PRECONDITION");
    return pass();
  },
});

mutant("StartSandbox restarts a running sandbox", ["DC-58"], {
  StartSandbox: async (request, pass, { ask }) => {
    await ask("StopSandbox", request);
    return pass();
  },
});

mutant("StartSandbox refuses a running sandbox", ["DC-58"], {
  StartSandbox: async ({ sandbox_id }, pass, { ask }) => {
    if (!isStopped(await find(ask, sandbox_id))) throw refusal("FAILED_PRECONDITION");
    return pass();
  },
});

mutant(
  "StopSandbox answers at once, and stops when somebody asks for the sandbox next",
  [
    "DC-59",
    "DC-60",
    "DC-63",
    "DC-64",
    "DC-66",
    "DC-67",
    "DC-80",
    "DC-82",
    "DC-150",
    "DC-151",
    "DC-152",
    "DC-180",
  ],
  () => {
    const later = new Map<string, () => Promise<unknown>>();
    return {
      StopSandbox: async ({ sandbox_id }, pass, { ask }) => {
        await find(ask, sandbox_id);
        later.set(sandbox_id, pass);
        return {};
      },
      GetSandbox: async ({ sandbox_id }, pass) => {
        await later.get(sandbox_id)?.();
        later.delete(sandbox_id);
        return pass();
      },
    };
  },
);

mutant(
  "StopSandbox stops nothing",
  [
    "DC-57",
    "DC-59",
    "DC-60",
    "DC-61",
    "DC-62",
    "DC-63",
    "DC-64",
    "DC-66",
    "DC-67",
    "DC-68",
    "DC-82",
    "DC-151",
    "DC-152",
    "DC-180",
  ],
  {
    StopSandbox: async ({ sandbox_id }, _, { ask }) => {
      await find(ask, sandbox_id);
      return {};
    },
  },
);

mutant(
  "StartSandbox starts nothing",
  [
    "DC-60",
    "DC-62",
    "DC-82",
    "DC-84",
    "DC-91",
    "DC-95",
    "DC-98",
    "DC-150",
    "DC-151",
    "DC-175",
    "DC-176",
    "DC-177",
    "DC-178",
  ],
  {
    StartSandbox: async ({ sandbox_id }, _, { ask }) => {
      await find(ask, sandbox_id);
      return {};
    },
  },
);

mutant("StartSandbox makes a stopped sandbox anew", ["DC-60", "DC-178"], {
  StartSandbox: async (request, pass, { ask }) => {
    const before = await find(ask, request.sandbox_id);
    if (!isStopped(before)) return pass();
    const { id, name, workspace } = before;
    await ask("DeleteSandbox", request);
    await ask("CreateSandbox", { sandbox: { id, name, workspace, spec: { sandbox_token: "anew" } } });
    return pass();
  },
});

mutant("ListSandboxes hides stopped sandboxes", ["DC-49", "DC-60", "DC-61"], {
  ListSandboxes: async (_, pass) => ({
    sandboxes: (await pass()).sandboxes.filter((sandbox) => !isStopped(sandbox)),
  }),
});

mutant("A stopped sandbox has a reason that no gateway knows", ["DC-57", "DC-61", "DC-68", "DC-176"], {
  GetSandbox: async (_, pass) => {
    const { sandbox } = await pass();
    for (const condition of sandbox!.status!.conditions)
      condition.reason = condition.reason.replace("ContainerExited", "Halted");
    return { sandbox };
  },
});

mutant("A stopped sandbox is listed as running", ["DC-61", "DC-93"], {
  ListSandboxes: async (_, pass) => {
    const { sandboxes } = await pass();
    for (const sandbox of sandboxes.filter(isStopped)) sandbox.status!.conditions[0]!.status = "True";
    return { sandboxes };
  },
});

mutant("WatchSandboxes reports the end of the last run while StartSandbox runs", ["DC-62"], () => {
  const again = new Map<string, () => void>();
  return {
    WatchSandboxes: (watch) => (event) => {
      const snapshot = event.sandbox?.sandbox;
      if (snapshot && isStopped(snapshot)) again.set(snapshot.id, () => watch.send(event));
      watch.send(event);
    },
    StartSandbox: async ({ sandbox_id }, pass) => {
      again.get(sandbox_id)?.();
      return pass();
    },
  };
});

mutant("StopSandbox stops eight sandboxes at a time, and refuses the others", ["DC-10", "DC-63"], () => ({
  StopSandbox: atMost(8, () => "all"),
}));

mutant("StopSandbox refuses a sandbox that it is just stopping", ["DC-64"], () => ({
  StopSandbox: atMost(1, ({ sandbox_id }) => sandbox_id),
}));

mutant("StopSandbox and StartSandbox look for a sandbox without an id", ["DC-65"], {
  StopSandbox: ({ sandbox_id, ...rest }, pass) => pass({ ...rest, sandbox_id: sandbox_id || "none" }),
  StartSandbox: ({ sandbox_id, ...rest }, pass) => pass({ ...rest, sandbox_id: sandbox_id || "none" }),
});

mutant("StopSandbox falls back to the name", ["DC-66"], {
  StopSandbox: byName,
});

mutant("StartSandbox falls back to the name", ["DC-66"], {
  StartSandbox: byName,
});

type Named = { sandbox_id: string; sandbox_name: string };

async function byName<Answer>(
  { sandbox_name }: Named,
  pass: (request?: Named) => Promise<Answer>,
  { ask }: RawCall,
): Promise<Answer> {
  return pass().catch(async (error: unknown) => {
    const sandbox_id = await idOf(ask, sandbox_name);
    if (!sandbox_id) throw error;
    return pass({ sandbox_id, sandbox_name });
  });
}

mutant("StartSandbox refuses a sandbox whose workload was killed", ["DC-150"], {
  StartSandbox: async ({ sandbox_id }, pass, { ask }) => {
    const { conditions } = (await find(ask, sandbox_id)).status!;
    if (conditions.some(({ message }) => message.includes("137"))) throw refusal("FAILED_PRECONDITION");
    return pass();
  },
});

mutant("StopSandbox and StartSandbox want the name as well", ["DC-151"], {
  StopSandbox: wantsName,
  StartSandbox: wantsName,
});

async function wantsName<Answer>(
  { sandbox_id, sandbox_name }: Named,
  pass: () => Promise<Answer>,
  { ask }: RawCall,
): Promise<Answer> {
  const { name } = await find(ask, sandbox_id);
  if (name !== sandbox_name) throw refusal("NOT_FOUND");
  return pass();
}
