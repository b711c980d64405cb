-- Shared by all scripts. KEYS[1] is the hash `meta`: who leads and which commit was the last.
-- Numbers stay below 2^53, so Lua's doubles hold them exactly.

local function text(number)
  return string.format('%.0f', number)
end

-- Runs a command. Where the user may not run it, the error names the command, which Redis 7.0 does not, and has a
-- code of its own.
local function call(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then
    return reply
  end
  for _, sign in ipairs({'NOPERM', "can't run this command", "can't access at least one", 'no permissions'}) do
    if string.find(reply.err, sign, 1, true) then
      error({err = 'NOPERM the user may not run `' .. string.lower((...)) .. '` in a script: ' .. reply.err})
    end
  end
  error(reply)
end

local function now()
  local time = call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- What is stored, with the values of an empty store where there is nothing.
local function read_meta()
  local m = call('HMGET', KEYS[1], 'epoch', 'owner', 'holder', 'seq', 'last', 'until', 'ttl', 'schema', 'about', 'installation')
  return {
    epoch = tonumber(m[1] or '0') or 0,
    owner = m[2] or '',
    holder = m[3] or '',
    seq = tonumber(m[4] or '0') or 0,
    last = m[5] or '',
    lease_end = tonumber(m[6] or '0') or 0,
    ttl = tonumber(m[7] or '0') or 0,
    schema = m[8],
    about = m[9] or '',
    installation = m[10] or '',
  }
end

-- The refusal of a reign that is over, else nil.
local function deposed(meta, epoch, owner)
  if meta.epoch > epoch or (meta.epoch == epoch and meta.owner ~= owner) then
    return {'deposed', meta.holder, text(meta.epoch)}
  end
end

-- The refusal of keys that are not ours, else nil. A script is not undone when a write in the middle of
-- it fails, so whatever could fail is looked at first.
local function foreign()
  for _, key in ipairs(KEYS) do
    local kind = call('TYPE', key).ok
    if kind ~= 'none' and kind ~= 'hash' then
      return {'foreign', key, kind}
    end
  end
end
