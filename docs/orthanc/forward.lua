-- Sends every answer of steatosis_tf, and nothing else, on to the modality "pacs".
-- As a job: Orthanc keeps it over a restart, and the worker starts one that failed again.
function OnStoredInstance(instanceId, tags, metadata, origin)
  if tags['Manufacturer'] == 'steatosis_tf' then
    RestApiPost('/modalities/pacs/store',
                DumpJson({Resources = {instanceId}, Asynchronous = true}))
  end
end
