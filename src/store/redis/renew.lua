-- Extends the lease. ARGV: epoch, seq, session id, lease in ms.
local epoch, seq, session_id, lease_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])

local meta = read_meta()
local refusal = deposed(meta, epoch, session_id)
if refusal then
  return refusal
end
if meta.epoch ~= epoch or meta.seq < seq then
  return {'lost', text(meta.seq)}
end
call('HSET', KEYS[1], 'lease_end_ms', text(now() + lease_ms), 'lease_ms', text(lease_ms))
return {'done'}
