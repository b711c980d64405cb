-- Writes one batch: checks first, writes last (`LeaderRecord::check_commit` has the same rules).
-- KEYS: meta, records, blobs, and, when the batch was staged, four hashes: puts, deletes, blob puts, blob deletes.
-- ARGV: epoch, seq, session id, holder, lease in ms, digest, '1' to replace, schema, the number of puts, deletes, blob
-- puts and blob deletes, holder info, installation; then, unless staged: deletes, puts, blob deletes, blob puts.
local epoch, seq, session_id, holder = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local lease_ms, digest, replace, schema = tonumber(ARGV[5]), ARGV[6], ARGV[7] == '1', ARGV[8]
local staged = #KEYS > 3

local meta = read_meta()
local refusal = deposed(meta, epoch, session_id)
if refusal then
  return refusal
end
local same_term = meta.epoch == epoch
if same_term and meta.seq == seq + 1 and meta.last_digest == digest then
  call('HSET', KEYS[1], 'lease_end_ms', text(now() + lease_ms), 'lease_ms', text(lease_ms))
  return {'done', text(meta.seq)}
end
local is_next
if replace then
  is_next = meta.seq <= seq
else
  is_next = same_term and meta.seq == seq
end
if not is_next then
  return {'lost', text(meta.seq)}
end
refusal = foreign()
if refusal then
  return refusal
end
if staged then
  for i = 1, 4 do
    if call('HLEN', KEYS[3 + i]) ~= tonumber(ARGV[8 + i]) then
      return {'unstaged'}
    end
  end
end

local position = 15

-- Runs a command on the next `count` arguments, in portions that fit on the stack of Lua.
local function write(command, key, count)
  local last = position + count - 1
  while position <= last do
    local stop = math.min(position + 999, last)
    call(command, key, unpack(ARGV, position, stop))
    position = stop + 1
  end
end

-- Calls `act` with portions of a staged hash: keys and values alternate.
local function each_portion(stage, act)
  local cursor = '0'
  repeat
    local reply = call('HSCAN', stage, cursor, 'COUNT', 64)
    cursor = reply[1]
    for first = 1, #reply[2], 1000 do
      act(reply[2], first, math.min(first + 999, #reply[2]))
    end
  until cursor == '0'
end

local function move_puts(stage, target)
  each_portion(stage, function(list, first, last)
    call('HSET', target, unpack(list, first, last))
  end)
end

local function move_deletes(stage, target)
  each_portion(stage, function(list, first, last)
    local keys = {}
    for i = first, last, 2 do
      keys[#keys + 1] = list[i]
    end
    call('HDEL', target, unpack(keys))
  end)
end

if replace then
  call('UNLINK', KEYS[2])
end
if staged then
  move_deletes(KEYS[5], KEYS[2])
  move_puts(KEYS[4], KEYS[2])
  move_deletes(KEYS[7], KEYS[3])
  move_puts(KEYS[6], KEYS[3])
  call('UNLINK', KEYS[4], KEYS[5], KEYS[6], KEYS[7])
else
  write('HDEL', KEYS[2], tonumber(ARGV[10]))
  write('HSET', KEYS[2], tonumber(ARGV[9]) * 2)
  write('HDEL', KEYS[3], tonumber(ARGV[12]))
  write('HSET', KEYS[3], tonumber(ARGV[11]) * 2)
end
call('HSET', KEYS[1], 'epoch', text(epoch), 'session_id', session_id, 'holder', holder, 'holder_info', ARGV[13],
  'seq', text(seq + 1), 'last_digest', digest, 'lease_end_ms', text(now() + lease_ms), 'lease_ms', text(lease_ms),
  'schema', schema,
  'installation', ARGV[14])
return {'done', text(seq + 1)}
