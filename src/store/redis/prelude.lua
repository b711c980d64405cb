-- Shared by all scripts. KEYS[1] is the hash `meta`: the leader and the last commit.
-- Numbers stay below 2^53, so Lua's doubles hold them exactly.

local function text(number)
  return string.format('%.0f', number)
end

-- Runs a command. If the user may not run it, the error has the code NOPERM and names the command, which that of
-- Redis 7.0 does not.
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

-- The stored fields, with the values of an empty store for missing ones.
local function read_meta()
  local m = call('HMGET', KEYS[1], 'epoch', 'session_id', 'holder', 'seq', 'last_digest', 'lease_end_ms', 'lease_ms', 'schema',
    'holder_info', 'installation')
  return {
    epoch = tonumber(m[1] or '0') or 0,
    session_id = m[2] or '',
    holder = m[3] or '',
    seq = tonumber(m[4] or '0') or 0,
    last_digest = m[5] or '',
    lease_end_ms = tonumber(m[6] or '0') or 0,
    lease_ms = tonumber(m[7] or '0') or 0,
    schema = m[8],
    holder_info = m[9] or '',
    installation = m[10] or '',
  }
end

-- The refusal of a term that has ended, else nil.
local function deposed(meta, epoch, session_id)
  if meta.epoch > epoch or (meta.epoch == epoch and meta.session_id ~= session_id) then
    return {'deposed', meta.holder, text(meta.epoch)}
  end
end

-- The refusal of keys of another type, else nil. A script is not undone if a write in its middle fails, so everything
-- that can fail is checked first.
local function foreign()
  for _, key in ipairs(KEYS) do
    local kind = call('TYPE', key).ok
    if kind ~= 'none' and kind ~= 'hash' then
      return {'foreign', key, kind}
    end
  end
end
