"""Items of three reporting guidelines, in our own words, and where a report answers each.

- CLAIM 2024: Tejani et al., Radiology: AI 2024, doi 10.1148/ryai.240300.
- TRIPOD+AI: Collins et al., BMJ 2024, doi 10.1136/bmj-2023-078378.
- STARD-AI: Sounderajah et al., Nature Medicine 2025. Items carry the numbers of STARD 2015 (Bossuyt
  et al., BMJ 2015, doi 10.1136/bmj.h5527), on which it builds; the subjects it adds are lettered
  AI-a, AI-b, ... here. Take the official numbers from the published checklist.

One line an item: number | subject | evidence. Evidence is `auto:NAME` (answered by the run, see
`checklists.py`), `study:NAME` (answered by the author in study.json) or `author` (belongs in the
manuscript).
"""

CLAIM_2024 = """
1 | Title or abstract names the AI technique | author
2 | Structured abstract | author
3 | Background, intended use and role of the AI | study:intended_use
4 | Aims and hypotheses | author
5 | Prospective or retrospective | author
6 | Goal of the study | author
7 | Data sources | study:data_sources
8 | Inclusion and exclusion criteria | study:eligibility
9 | Preprocessing of data | auto:preprocessing
10 | Selection of data subsets | auto:preprocessing
11 | De-identification | study:deidentification
12 | Missing data | study:missing_data
13 | Image acquisition | study:devices
14 | Definition of the reference standard | study:reference_standard
15 | Reason for this reference standard | study:reference_standard
16 | Source of the reference annotations | study:readers
17 | Annotation of the test set | study:readers
18 | Variability within and between readers | study:readers
19 | Assignment of data to partitions | auto:split
20 | Level at which partitions are disjoint | auto:disjoint
21 | Intended sample size | study:sample_size
22 | Description of the model | auto:config
23 | Software and versions | auto:environment
24 | Initialisation of parameters | auto:config
25 | Training: augmentation, hyperparameters, length | auto:config
26 | Choice of the final model | auto:config
27 | Ensembling | auto:config
28 | Metrics | auto:metrics
29 | Uncertainty and significance | auto:intervals
30 | Robustness or sensitivity analysis | auto:robustness
31 | Explainability and its validation | auto:explanations
32 | Evaluation on internal data | auto:metrics
33 | Testing on external data | auto:external
34 | Registration of a trial | study:protocol
35 | Numbers included and excluded | auto:flow
36 | Demographic and clinical characteristics per partition | auto:characteristics
37 | Performance with uncertainty | auto:intervals
38 | Diagnostic accuracy and its precision | auto:operating
39 | Failure analysis | auto:gallery
40 | Limitations | study:limitations
41 | Implications for practice | author
42 | Protocol or further technical details | study:protocol
43 | Availability of software, model, data | study:availability
44 | Funding and the funders' role | study:funding
"""

TRIPOD_AI = """
1 | Title: development or evaluation, population, outcome | author
2 | Abstract | author
3a | Context and reason, existing models | author
3b | Target population and use in the care pathway | study:population
3c | Known health inequalities | author
4 | Objectives | author
5a | Sources of data and their fitness | study:data_sources
5b | Dates of collection | study:dates
6a | Setting, number and place of centres | study:data_sources
6b | Eligibility | study:eligibility
6c | Treatments received | author
7 | Data preparation and quality checks | auto:preprocessing
8a | Outcome and how it was assessed | study:reference_standard
8b | Assessors of the outcome | study:readers
8c | Blinding of outcome assessment | study:readers
9a | Choice of predictors | auto:preprocessing
9b | Definition and measurement of predictors | study:devices
9c | Assessors of predictors | study:devices
10 | Sample size | study:sample_size
11 | Missing data | study:missing_data
12a | How data were used for development and evaluation | auto:split
12b | Handling of predictors | auto:preprocessing
12c | Model type, building steps, tuning, internal validation | auto:config
12d | Differences between clusters | auto:subgroups
12e | Measures of performance | auto:metrics
12f | Updating after evaluation | study:monitoring
12g | How predictions were calculated | auto:config
13 | Class imbalance | auto:config
14 | Fairness | auto:subgroups
15 | Output of the model and thresholds | auto:operating
16 | Differences between development and evaluation data | auto:characteristics
17 | Ethics approval and consent | study:consent
18a | Funding | study:funding
18b | Conflicts of interest | study:funding
18c | Protocol | study:protocol
18d | Registration | study:protocol
18e | Availability of data | study:availability
18f | Availability of code | study:availability
19 | Involvement of patients and public | study:involvement
20a | Flow of participants | auto:flow
20b | Characteristics of participants | auto:characteristics
20c | Comparison with development data | auto:characteristics
21 | Participants and events in each analysis | auto:metrics
22 | Full model, so that others can predict | auto:model
23a | Performance with confidence intervals, subgroups | auto:intervals
23b | Heterogeneity between clusters | auto:subgroups
24 | Results of updating | study:monitoring
25 | Interpretation | author
26 | Limitations | study:limitations
27a | Poor or missing input in use | auto:rejection
27b | Interaction with and expertise of users | study:users
27c | Next steps | author
"""

STARD_AI = """
1 | Title: diagnostic accuracy, AI, a measure of accuracy | author
2 | Structured abstract | author
3 | Background, intended use and role of the index test | study:intended_use
4 | Objectives and hypotheses | author
5 | Data collected before or after the tests | author
6 | Eligibility of participants | study:eligibility
7 | How participants were identified | study:eligibility
8 | Where and when | study:dates
9 | Consecutive, random or convenience series | study:eligibility
AI-a | Sources, composition and consent of the data sets | study:consent
AI-b | Preprocessing and quality control of inputs | auto:preprocessing
AI-c | Partitions and their independence | auto:disjoint
AI-d | Leak audit between partitions | auto:leak
10a | Index test, to be repeated by others: model, version, inputs | auto:config
AI-e | Development of the model: training and choice | auto:config
AI-f | Software, hardware | auto:environment
10b | Reference standard | study:reference_standard
11 | Reason for the reference standard | study:reference_standard
12a | Cut-offs of the index test, fixed before or found after | auto:operating
12b | Cut-offs of the reference standard | study:reference_standard
13a | What readers of the index test knew | study:readers
13b | What assessors of the reference knew | study:readers
14 | Estimating and comparing accuracy | auto:intervals
15 | Indeterminate results, abstention | auto:rejection
16 | Missing data | study:missing_data
17 | Variability in accuracy, subgroups | auto:subgroups
18 | Sample size | study:sample_size
19 | Flow of participants | auto:flow
20 | Baseline characteristics | auto:characteristics
21a | Severity in those with the condition | auto:metrics
21b | Other diagnoses in those without | author
22 | Interval between index test and reference | study:reference_standard
23 | Cross tabulation of index test and reference | auto:metrics
24 | Accuracy with its precision | auto:intervals
AI-g | Calibration of probabilities | auto:calibration
AI-h | Robustness to changed inputs | auto:robustness
AI-i | Error analysis | auto:gallery
AI-j | Explanations and their validation | auto:explanations
AI-k | Generalisation to other places | auto:external
AI-l | Fairness and bias | auto:subgroups
25 | Adverse events | author
26 | Limitations | study:limitations
27 | Implications for practice | author
28 | Registration | study:protocol
29 | Protocol | study:protocol
30 | Funding and role of funders | study:funding
AI-m | Availability of code, model, data | study:availability
AI-n | Monitoring and updating in use | study:monitoring
"""

CHECKLISTS = {
    "CLAIM 2024": CLAIM_2024,
    "TRIPOD+AI": TRIPOD_AI,
    "STARD-AI": STARD_AI,
}
