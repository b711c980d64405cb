-- Stores a part of a batch that is too large for one script. Only the commit of the batch reads it; it expires if that
-- never comes. KEYS[1]: the hash. ARGV: lifetime in ms, '1' for the first part, then keys and values in turn.
if ARGV[2] == '1' then
  call('UNLINK', KEYS[1])
end
for first = 3, #ARGV, 1000 do
  call('HSET', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
call('PEXPIRE', KEYS[1], ARGV[1])
return {'done'}
